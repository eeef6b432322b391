"""What a trained network takes and gives, as its file says it: known without torch.

The file is safetensors, sealed by the sha256 of all of its bytes. Its metadata have one entry, "unetpp", JSON of

- "seal": the sha256 of the file with zeros in the place of these 64 digits;
- "format": 3, or 4 with what readers of 3 would not know: a size that is no square, "pad"; 5 with an encoder; 6 with
  targets beside the mask;
- "network": the keywords of NestedUNet; "size": px that images were resized to for training, a side or [height, width],
  or null; "fit": how (`unetpp.images.frame.Frame`), "stretch" where it is missing; "info": where it comes from.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unetpp.errors import UserError
from unetpp.files import check_sha256, parse_json
from unetpp.images.frame import Fit, Frame, Size, as_size, frame_of, plain, say_size
from unetpp.network.masks import MASK, first_class

MODEL, OLDER = "model.safetensors", "model.pt"
ZIP = b"PK\x03\x04"
FORMATS, UNSEALED = (3, 4, 5, 6), "0" * 64
MAX_HEADER = 2**24  # bytes; of the largest network it has some 100 kB
FIX = "expected what the train stage writes, or `Trained.save`: copy the file again, or train again"


@dataclass(frozen=True)
class Separation:
    """How boundary and distance part objects (`unetpp.inference.instances`): what was best on val for a depth."""

    seed: float  # least energy, distance * (1 - boundary), of a pixel that an object grows from
    smallest_px: int  # smaller objects are dropped


USUAL = Separation(seed=0.35, smallest_px=12)


@dataclass(frozen=True)
class About:
    """What a trained network takes and gives."""

    config: Mapping[str, Any]  # the keywords of NestedUNet
    size: int | Size | None  # px that images were resized to for training, if they were; a pair once it is made
    info: Mapping[str, Any] = field(default_factory=dict)  # where it comes from: params, hashes, epoch
    sha256: str | None = None  # of the file that it was read from
    fit: Fit = "stretch"  # how images were resized

    def __post_init__(self):
        object.__setattr__(self, "size", as_size(self.size))

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.config["widths"])

    @property
    def depth(self) -> int:
        return len(self.widths) - 1

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths at which it has a head."""
        return tuple(range(1, self.depth + 1)) if self.config.get("deep_supervision", True) else (self.depth,)

    @property
    def in_channels(self) -> int:
        return self.config.get("in_channels", 3)

    @property
    def num_classes(self) -> int:
        return self.config.get("num_classes", 1)

    @property
    def multilabel(self) -> bool:
        return self.config.get("multilabel", False)

    @property
    def background(self) -> bool:
        return self.config.get("background", True)

    @property
    def frame(self) -> Frame | None:
        """What whole images are brought to, if to anything."""
        return frame_of(self.size, self.fit)

    @property
    def canvas(self) -> Size | None:
        """What they are padded to, if to anything."""
        return self.frame.canvas if self.frame else None

    @property
    def classes(self) -> list[str]:
        """Names of the classes that count, or of the labels; numbers where the data have no names for them.

        They are those of the values 1, 2 ... of a mask, and of 0, 1 ... where class 0 is no background.
        """
        first, begin = first_class(self.num_classes, self.multilabel, self.background), int(self.background)
        numbers = range(begin, begin + self.num_classes - first)
        return self.info.get("classes") or [str(number) for number in numbers]

    @property
    def names(self) -> list[str]:
        """What the values 0, 1 ... of a mask mean, where they are no labels."""
        return ["background"] * self.background + self.classes

    @property
    def encoder(self) -> str | None:
        """The network of timm that its nodes X[i, 0] are."""
        return self.config.get("encoder")

    @property
    def targets(self) -> tuple[str, ...]:
        """What its heads give: the mask, perhaps boundary and distance."""
        return tuple(self.config.get("targets", MASK))

    @property
    def num_outputs(self) -> int:
        """Channels of its probabilities: the first `num_classes` are the mask's."""
        return self.num_classes + len(self.targets) - 1

    def separation(self, depth: int | None = None) -> Separation | None:
        """How objects are parted at a depth, by default the deepest; None: connected pixels are an object.

        A model whose training chose nothing (`unetpp.fit`) has the middle of what training chooses from.
        """
        if self.targets == MASK:
            return None
        chosen = self.info.get("separation", {}).get(f"L{self.depth if depth is None else depth}")
        return Separation(**chosen) if chosen else USUAL

    @property
    def receptive_px(self) -> int:
        """How far from an output pixel an input pixel can lie and still matter: an upper bound, in pixels.

        With an encoder it is none: nothing but timm's code knows how far that looks, and one with attention or
        squeezing looks everywhere. Then it is twice the bound of our own network of this depth, beyond which a pixel
        matters little (docs/networks.md).
        """
        reach = {}
        for k in range(self.depth + 1):
            for j in range(k + 1):
                i = k - j
                if j == 0:
                    inner = 0 if i == 0 else reach[i - 1, 0] + 2 ** (i - 1)  # a pool looks at the pixel beside, too
                else:
                    inner = max(reach[i, j - 1], reach[i + 1, j - 1] + 2 ** (i + 1))  # and so does upsampling
                reach[i, j] = inner + 2 * 2**i  # two 3x3 convolutions
        return reach[0, self.depth] * (2 if self.encoder else 1)

    def at(self, depth: int) -> "About":
        """Of the network pruned to a depth, without a file."""
        config = dict(self.config) | {"widths": list(self.widths[: depth + 1]), "deep_supervision": False}
        return replace(self, config=config, sha256=None)

    def describe(self, depths: tuple[int, ...]) -> str:
        """One line: depths, widths, channels, classes, size."""
        widths = " ".join(map(str, self.widths[: max(depths) + 1]))
        kind = "labels" if self.multilabel else "classes"
        size = plain(self.size)
        said = "any size" if size is None else f"{size if isinstance(size, int) else say_size(size)} px"
        encoder = f"encoder {self.encoder}, " if self.encoder else ""
        parted = "" if self.targets == MASK else " in instances"
        return (
            f"{', '.join(f'L{depth}' for depth in depths)}, {encoder}widths {widths}, {self.in_channels} channels, "
            f"{kind} {', '.join(self.classes)}{parted}, {said}"
        )


def find_file(path: str | Path) -> Path:
    """A model file, or that of a folder: model.safetensors, or what earlier versions wrote.

    Raises:
        UserError: no such file.
    """
    file = Path(path)
    if file.is_dir():
        is_older = (file / OLDER).is_file() and not (file / MODEL).exists()
        file = file / (OLDER if is_older else MODEL)
    if not file.is_file():
        raise UserError(f"{file}: no such model; {FIX}")
    return file


def read_about(path: str | Path) -> About | None:
    """What a model file or its folder says of itself, after its seal was checked; None: torch alone reads such a file.

    Raises:
        UserError: no such file, not such a file, or a damaged one.
    """
    file = find_file(path)
    return None if is_zip(file) else read_sealed(file)[0]


def is_zip(file: Path) -> bool:
    """Whether it is a model.pt of earlier versions."""
    with file.open("rb") as opened:
        return opened.read(len(ZIP)) == ZIP


def read_sealed(file: Path) -> tuple[About | None, bytes]:
    """What a model.safetensors says of itself, after its seal was checked, and its bytes; None: it says nothing.

    Raises:
        UserError: not such a file, or a damaged one.
    """
    with file.open("rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if not 2 <= length <= MAX_HEADER:  # before anything large is read
            raise UserError(f"{file}: not a model of this project; {FIX}")
        header = opened.read(length)
        metadata = parse_json(header, file, FIX).get("__metadata__")
        said = metadata.get("unetpp") if isinstance(metadata, dict) else None
        if said is None:
            return None, start + header + opened.read()
        said = parse_json(str(said), file, FIX, ("seal", "format", "network", "size", "info"))
        if said["format"] not in FORMATS:
            known = ", ".join(map(str, FORMATS))
            raise UserError(f"{file}: found format {said['format']}; this version of unetpp reads {known}; {FIX}")
        opened.seek(0)
        content = opened.read()
    seal = str(said["seal"])
    at = max(0, content.find(seal.encode(), 0, len(start) + length))  # where there is none, the sums differ
    unsealed = hashlib.sha256(content[:at] + UNSEALED.encode())
    unsealed.update(memoryview(content)[at + len(seal.encode()) :])  # no copy of the weights
    check_sha256(file, unsealed.hexdigest(), seal, f"it is damaged or was changed: {FIX}")
    digest = hashlib.sha256(content).hexdigest()
    return About(said["network"], said["size"], said["info"], digest, said.get("fit", "stretch")), content
