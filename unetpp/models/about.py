"""The description of a trained network in its file, readable without torch.

The file is safetensors, sealed by the sha256 of all its bytes. Its metadata has one entry, "unetpp", a JSON object:

- "seal": the sha256 of the file with zeros in place of these 64 digits;
- "format": 3, or 4 with features that readers of format 3 do not know (a size that is not square, "pad"); 5 with an
  encoder; 6 with further targets;
- "network": the keyword arguments of NestedUNet; "size": px that images were resized to for training, a side or
  [height, width], or null; "fit": how (`unetpp.images.frame.Frame`), by default "stretch"; "info": its origin.
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
MAX_HEADER = 2**24  # bytes; the largest network needs some 100 kB
FIX = "expected a file of the train stage or of `Trained.save`: copy the file again, or train again"


@dataclass(frozen=True)
class Separation:
    """Settings for separating objects by boundary and distance (`unetpp.inference.instances`): the best on val."""

    seed: float  # lowest energy, distance * (1 - boundary), of pixels from which objects grow
    smallest_px: int  # smaller objects are dropped


USUAL = Separation(seed=0.35, smallest_px=12)


@dataclass(frozen=True)
class About:
    """The description of a trained network: its inputs, outputs and origin."""

    config: Mapping[str, Any]  # the keyword arguments of NestedUNet
    size: int | Size | None  # px that images were resized to for training, stored as a pair; None: not resized
    info: Mapping[str, Any] = field(default_factory=dict)  # its origin: params, hashes, epoch
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
        """The depths at which the network has a head."""
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
        """How whole images are resized or padded; None if they are not."""
        return frame_of(self.size, self.fit)

    @property
    def canvas(self) -> Size | None:
        """The size that whole images are padded to; None if they are not."""
        return self.frame.canvas if self.frame else None

    @property
    def classes(self) -> list[str]:
        """Names of the classes without the background, or of the labels; numbers if the dataset has no names.

        They belong to the mask values 1, 2 ..., or to 0, 1 ... if class 0 is not the background.
        """
        first, begin = first_class(self.num_classes, self.multilabel, self.background), int(self.background)
        numbers = range(begin, begin + self.num_classes - first)
        return self.info.get("classes") or [str(number) for number in numbers]

    @property
    def names(self) -> list[str]:
        """The meaning of the mask values 0, 1 ... of classes (not of labels)."""
        return ["background"] * self.background + self.classes

    @property
    def encoder(self) -> str | None:
        """The timm network that provides the nodes X[i, 0], if any."""
        return self.config.get("encoder")

    @property
    def targets(self) -> tuple[str, ...]:
        """The outputs of its heads: the mask, possibly boundary and distance."""
        return tuple(self.config.get("targets", MASK))

    @property
    def num_outputs(self) -> int:
        """Channels of its probabilities: the first `num_classes` are the mask's."""
        return self.num_classes + len(self.targets) - 1

    def separation(self, depth: int | None = None) -> Separation | None:
        """How objects are separated at a depth, by default the deepest; None: connected pixels are an object.

        If training did not choose settings (`unetpp.fit` without `val`), these are the middle of the candidates.
        """
        if self.targets == MASK:
            return None
        chosen = self.info.get("separation", {}).get(f"L{self.depth if depth is None else depth}")
        return Separation(**chosen) if chosen else USUAL

    @property
    def receptive_px(self) -> int:
        """The radius of the receptive field in pixels: inputs further away do not affect an output pixel.

        With an encoder this is not a strict bound: the receptive field of timm networks is not known, and attention or
        squeeze-and-excitation covers the whole image. It is then twice the bound of our own network of this depth,
        beyond which a pixel has little effect (docs/networks.md).
        """
        reach = {}
        for k in range(self.depth + 1):
            for j in range(k + 1):
                i = k - j
                if j == 0:
                    inner = 0 if i == 0 else reach[i - 1, 0] + 2 ** (i - 1)  # pooling also reads the neighbouring pixel
                else:
                    inner = max(reach[i, j - 1], reach[i + 1, j - 1] + 2 ** (i + 1))  # so does upsampling
                reach[i, j] = inner + 2 * 2**i  # two 3x3 convolutions
        return reach[0, self.depth] * (2 if self.encoder else 1)

    def at(self, depth: int) -> "About":
        """The description of the network pruned to a depth, without a file."""
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
    """The path of a model file, or of the one in a folder: model.safetensors, or the file of an earlier version.

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
    """The description in a model file, after checking its seal; None if only torch can read the file.

    Raises:
        UserError: no such file, not a model file, or a damaged one.
    """
    file = find_file(path)
    return None if is_zip(file) else read_sealed(file)[0]


def is_zip(file: Path) -> bool:
    """Whether the file is a model.pt of an earlier version."""
    with file.open("rb") as opened:
        return opened.read(len(ZIP)) == ZIP


def read_sealed(file: Path) -> tuple[About | None, bytes]:
    """The description in a model.safetensors (None if it has none) after checking its seal, and its bytes.

    Raises:
        UserError: not a model file, or a damaged one.
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
    at = max(0, content.find(seal.encode(), 0, len(start) + length))  # if the seal is not found, the sums differ
    unsealed = hashlib.sha256(content[:at] + UNSEALED.encode())
    unsealed.update(memoryview(content)[at + len(seal.encode()) :])  # no copy of the weights
    check_sha256(file, unsealed.hexdigest(), seal, f"it is damaged or was changed: {FIX}")
    digest = hashlib.sha256(content).hexdigest()
    return About(said["network"], said["size"], said["info"], digest, said.get("fit", "stretch")), content
