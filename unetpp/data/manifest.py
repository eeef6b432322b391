"""The manifest of prepared data: what size and how many classes they have, and what each split holds."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unetpp.errors import UserError
from unetpp.files import check_sha256, read_json, sha256
from unetpp.images.frame import Fit, Frame, Size, as_size, frame_of, plain

AGAIN = "run `dvc repro prepare`"


@dataclass(frozen=True)
class SplitFacts:
    """What a prepared split holds."""

    num_images: int
    sha256: str  # of its Arrow file
    kinds: dict[str, int] = field(default_factory=dict)  # how many images of each kind


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json of a prepared folder. Data that stage prepare did not make may lack what has a default."""

    size: int | Size | None  # px of what the network sees, as a pair once it is made; None: the images' own sizes
    fit: Fit = "stretch"  # how they come to that size
    channels: int
    num_classes: int
    multilabel: bool = False
    classes: list[str] | None = None  # names of the values 1, 2 ... of a mask, or of 0, 1 ... without background
    background: bool = True  # class 0 is the background, and no class that counts
    values: dict[str, str] | None = None  # what the values or colours of the set's masks mean (`prepare.values`)
    splits: dict[str, SplitFacts]
    val_full_sha256: str | None = None  # of val_full.arrow: val at the images' own sizes, where `size` changes them
    num_groups: int | None = None
    num_near_duplicates: int = 0  # pairs
    quarantined: int = 0  # files
    raw_sha256: str | None = None  # of the manifest of the raw data
    foreground_share: float = 0.0  # of the annotated pixels of train
    ignored_share: float = 0.0  # of the pixels of train
    given_split: bool = False  # whether the set's own split was taken; else by hash
    sequences: dict | None = None  # of numbered frames: how many, and the test frames near to train ones
    leaks: list[str] = field(default_factory=list)  # sentences: what stands in two splits that the set itself made
    class_pixels: list[int] | None = None  # of train; of labels first the pixels without one

    def __post_init__(self):
        object.__setattr__(self, "size", as_size(self.size))

    @property
    def frame(self) -> Frame | None:
        """What whole images are brought to, if to anything."""
        return frame_of(self.size, self.fit)

    @property
    def full_val(self) -> str:
        """The name of val at the images' own sizes."""
        return "val_full" if self.val_full_sha256 else "val"

    def write(self, prepared: Path) -> None:
        """Write manifest.json into an existing folder."""
        (prepared / "manifest.json").write_text(
            json.dumps(asdict(self) | {"size": plain(self.size)}, indent=2) + "\n", encoding="utf-8"
        )

    def check(self, prepared: Path, *splits: str) -> None:
        """Compare the Arrow files of these splits, or "val_full", with their sums; a file is read once for it.

        Raises:
            UserError: a file is missing or has other bytes.
        """
        sums = {name: facts.sha256 for name, facts in self.splits.items()} | {"val_full": self.val_full_sha256}
        for path, expected in ((prepared / f"{split}.arrow", sums[split]) for split in splits):
            if not path.is_file():
                raise UserError(f"{path}: no such file, and manifest.json names it: {AGAIN}")
            check_sha256(path, sha256(path), str(expected), f"it is damaged, or not that of manifest.json: {AGAIN}")


def read_manifest(prepared: str | Path) -> Manifest:
    """The manifest of a prepared folder.

    Raises:
        UserError: missing, not JSON, or with other keys than those of this version.
    """
    path = Path(prepared) / "manifest.json"
    found = read_json(path, f"expected a prepared folder: {AGAIN}", ("splits",))
    try:
        splits = {name: SplitFacts(**facts) for name, facts in found["splits"].items()}
        return Manifest(**found | {"splits": splits})
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: found a manifest of another version ({error}): {AGAIN} with this version") from None
