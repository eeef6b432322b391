"""Sets of images with a fault in one of them, and what becomes of it."""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core.params import load_params
from pipelines.core.sections.prepare import Prepare
from pipelines.dataset.splits import SPLITS
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from tests.conftest import REPOSITORY
from unetpp.data.arrow_split import Split
from unetpp.errors import UserError

PARAMS = load_params(REPOSITORY / "params.yaml")
PREPARE = PARAMS.prepare.model_copy(update={"size": None})
PAGES = ("data", "reading")  # of docs
SIDE = 24


@dataclass
class FaultySet:
    """A folder of pairs, of which a fault is the exception."""

    folder: Path
    patch: pytest.MonkeyPatch
    expected: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    together: list[tuple[str, str]] = field(default_factory=list)  # ids that must share a group and a split
    apart: list[tuple[str, str]] = field(default_factory=list)  # ids that must not share a group

    @property
    def source(self) -> Path:
        """The user's folder."""
        return self.folder / "source"

    def good(self, num: int = 40, num_classes: int = 2) -> None:
        """Sound pairs 0000 ..., and `odd`, to be spoilt."""
        for id in [*(f"{number:04}" for number in range(num)), "odd"]:
            self.image(f"{id}.png", noise(id))
            self.mask(f"{id}.png", block(num_classes - 1))

    def image(self, name: str, pixels: np.ndarray, **options) -> Path:
        return self._write(self.source / "images" / name, pixels, options)

    def mask(self, name: str, pixels: np.ndarray, **options) -> Path:
        return self._write(self.source / "masks" / name, pixels, options)

    @staticmethod
    def _write(path: Path, pixels: np.ndarray, options: dict) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)
        return path

    def replace_image(self, name: str, pixels: np.ndarray) -> Path:
        (self.source / "images/odd.png").unlink()
        return self.image(name, pixels)

    def replace_mask(self, name: str, pixels: np.ndarray) -> Path:
        (self.source / "masks/odd.png").unlink()
        return self.mask(name, pixels)

    def expect(self, image: np.ndarray, mask: np.ndarray, id: str = "odd") -> None:
        """What the policy makes of a sample: image (H, W, 3) and mask (H, W)."""
        self.expected[id] = image, mask


class Faults:
    """A table of faults: ways to spoil a set, and what becomes of it.

    A way changes the good set that it is given, and may return other params of the stage. It ends, by `outcome`, in
    "error": prepare is refused with what `message` matches, and nothing is written;
    "quarantine": the sample `odd` alone is set aside, and one of its rows, "file: reason: fix", matches `message`;
    "policy": every sample is read, those of `expect` as it says, and docs/data.md or reading.md says `message`.
    """

    def __init__(self):
        self.rows: list = []

    def __call__(self, outcome: str, message: str, nightly: bool = False):
        assert outcome in ("error", "quarantine", "policy")

        def add(make: Callable[[FaultySet], Prepare | None]):
            marks = [pytest.mark.nightly] if nightly else []
            self.rows.append(pytest.param(make, outcome, message, id=make.__name__.replace("_", " "), marks=marks))
            return make

        return add


def check(make: Callable[[FaultySet], Prepare | None], outcome: str, message: str, faulty: FaultySet) -> None:
    """Prepare a set that was spoilt and hold what comes of it against the table."""
    faulty.good()
    params, out = make(faulty) or PREPARE, faulty.folder / "out"
    ingest(PARAMS.ingest.model_copy(update={"kind": "folder", "location": str(faulty.source)}), faulty.folder / "raw")
    if outcome == "error":
        with pytest.raises(UserError, match=message):
            prepare(params, faulty.folder / "raw", out)
        assert not list(faulty.folder.glob("*out*"))
        return
    prepare(params, faulty.folder / "raw", out)
    rows = read_csv(out / "quarantine.csv")
    prepared = {}
    for split in (Split(out / f"{name}.arrow") for name in SPLITS):
        prepared |= {id: split[index] for index, id in enumerate(split.ids)}
    assert {f"{number:04}" for number in range(40)} <= set(prepared)
    assert all(row["fix"] for row in rows)
    if outcome == "quarantine":
        assert {row["id"].casefold() for row in rows} == {"odd"}
        assert any(re.search(message, f"{row['file']}: {row['reason']}: {row['fix']}") for row in rows), rows
        assert not {id for id in prepared if id.startswith("odd")}
        return
    assert rows == []
    for id, (image, mask) in faulty.expected.items():
        assert prepared[id][0].dtype == image.dtype
        assert np.array_equal(prepared[id][0], image)
        assert np.array_equal(prepared[id][1], mask)
    places = {row["id"]: (row["group"], row["split"]) for row in read_csv(out / "split.csv")}
    assert all(places[one] == places[other] for one, other in faulty.together)
    assert all(places[one][0] != places[other][0] for one, other in faulty.apart)
    assert message in " ".join(" ".join((REPOSITORY / f"docs/{page}.md").read_text() for page in PAGES).split())


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def noise(key: str, channels: int = 3, dtype: type[np.number] = np.uint8) -> np.ndarray:
    """A picture that no other key gives."""
    generator = np.random.default_rng(list(key.encode()))
    shape = (SIDE, SIDE, channels) if channels > 1 else (SIDE, SIDE)
    high = np.iinfo(dtype).max if issubclass(dtype, np.unsignedinteger) else 2**15
    return generator.integers(0, high, shape).astype(dtype)


def block(value: int = 1) -> np.ndarray:
    """A mask with a square of a value."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:15, 6:17] = value
    return mask


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels] * 3, axis=2)


def with_params(**changes) -> Prepare:
    return Prepare.model_validate(PREPARE.model_dump() | changes)
