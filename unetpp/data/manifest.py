"""The manifest of prepared data: their size, their classes, and the contents of each split."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unetpp.errors import UserError
from unetpp.files import check_sha256, read_json, sha256
from unetpp.images.frame import Fit, Frame, Size, as_size, frame_of, plain

AGAIN = "run `dvc repro prepare`"


@dataclass(frozen=True)
class SplitFacts:
    """The contents of a prepared split."""

    num_images: int
    sha256: str  # of its Arrow file
    kinds: dict[str, int] = field(default_factory=dict)  # how many images of each kind


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json of a prepared folder. Keys with a default may be missing if stage prepare did not make the data."""

    size: int | Size | None  # px that the network sees, stored as a pair; None: the images' own sizes
    fit: Fit = "stretch"  # how images are brought to that size
    channels: int
    num_classes: int
    multilabel: bool = False
    classes: list[str] | None = None  # names of the values 1, 2 ... of a mask, or of 0, 1 ... without background
    background: bool = True  # class 0 is the background, not a class
    values: dict[str, str] | None = (
        None  # the meaning of the values or colours of the dataset's masks (`prepare.values`)
    )
    splits: dict[str, SplitFacts]
    val_full_sha256: str | None = None  # of val_full.arrow: val at the images' own sizes, where `size` changes them
    num_groups: int | None = None
    num_near_duplicates: int = 0  # pairs
    quarantined: int = 0  # files
    raw_sha256: str | None = None  # of the manifest of the raw data
    foreground_share: float = 0.0  # of the annotated pixels of train
    ignored_share: float = 0.0  # of the pixels of train
    given_split: bool = False  # whether the dataset's own split is used; else split by hash
    sequences: dict | None = None  # numbered frames: how many, and which test frames are close to train ones
    leaks: list[str] = field(default_factory=list)  # sentences: what is in two of the dataset's own splits
    class_pixels: list[int] | None = None  # of train; with labels, first the pixels without a label

    def __post_init__(self):
        object.__setattr__(self, "size", as_size(self.size))

    @property
    def frame(self) -> Frame | None:
        """How whole images are resized or padded; None if they are not."""
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
        """Compare the Arrow files of these splits, or "val_full", with their sums, which reads each file once.

        Raises:
            UserError: a file is missing or has other bytes.
        """
        sums = {name: facts.sha256 for name, facts in self.splits.items()} | {"val_full": self.val_full_sha256}
        for path, expected in ((prepared / f"{split}.arrow", sums[split]) for split in splits):
            if not path.is_file():
                raise UserError(f"{path}: no such file, but manifest.json names it: {AGAIN}")
            check_sha256(path, sha256(path), str(expected), f"it is damaged, or not that of manifest.json: {AGAIN}")


def read_manifest(prepared: str | Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Raises:
        UserError: the manifest is missing, not JSON, or has other keys than in this version.
    """
    path = Path(prepared) / "manifest.json"
    found = read_json(path, f"expected a prepared folder: {AGAIN}", ("splits",))
    try:
        splits = {name: SplitFacts(**facts) for name, facts in found["splits"].items()}
        return Manifest(**found | {"splits": splits})
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: found a manifest of another version ({error}): {AGAIN} with this version") from None
