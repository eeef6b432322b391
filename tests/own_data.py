"""Sets as other people have them, drawn small, and the two commands that make a registered family of each."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tests.wheels import Installed

NUM_IMAGES, SIDE = 40, 128


def draw(number: int, colours: list[tuple[int, ...]]) -> tuple[Image.Image, Image.Image]:
    """A noisy photograph, and its mask: 0, and 1 ... for the discs of each colour."""
    random = np.random.default_rng(number)
    image, mask = Image.new("RGB", (SIDE, SIDE), (150, 120, 100)), Image.new("L", (SIDE, SIDE))
    for label, colour in enumerate(colours, 1):
        for _ in range(2):
            x, y, r = map(int, random.integers((10, 10, 8), (SIDE - 10, SIDE - 10, 24)))
            for canvas, fill in ((image, colour), (mask, label)):
                ImageDraw.Draw(canvas).ellipse((x - r, y - r, x + r, y + r), fill=fill)
    noise = random.normal(0, 12, (SIDE, SIDE, 3))
    noisy = np.clip(np.asarray(image.filter(ImageFilter.GaussianBlur(1))) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(noisy), mask


def make_kvasir(folder: Path) -> None:
    """Polyps: images/ and masks/ of the same names, the masks as JPEG, whose edges are grey."""
    for number in range(NUM_IMAGES):
        image, mask = draw(number, [(200, 60, 60)])
        for kind, picture in (("images", image), ("masks", mask.point(lambda value: 255 * value))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            picture.save(folder / kind / f"cju{number:03}.jpg", quality=75)


def make_voc(folder: Path) -> None:
    """Pascal VOC: palette masks with void outlines, lists of names, and images without masks beside them."""
    colours = [(200, 60, 60), (60, 60, 200), (60, 180, 60)]
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + 3 * 251 * [0] + [224, 224, 192]
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    names = [f"2007_{number:06}" for number in range(NUM_IMAGES)]
    for number, name in enumerate([*names, "2008_000001"]):
        image, mask = draw(number, colours)
        image.save(folder / f"JPEGImages/{name}.jpg", quality=90)
        if name in names:
            values = np.asarray(mask)
            edges = np.asarray(mask.filter(ImageFilter.MaxFilter(3))) != np.asarray(
                mask.filter(ImageFilter.MinFilter(3))
            )
            stored = Image.fromarray(np.where(edges, 255, values).astype(np.uint8)).convert("P")
            stored.putpalette(palette)
            stored.putdata(np.where(edges, 255, values).ravel().tolist())
            stored.save(folder / f"SegmentationClass/{name}.png")
    for split, chosen in {"train": names[:28], "val": names[28:], "trainval": names}.items():
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in chosen))


def make_membranes(folder: Path) -> None:
    """Electron microscopy: image/ and label/, grey; cells are foreground and cover most of each image."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number in range(30):
        random = np.random.default_rng(number)
        seeds = random.integers(0, SIDE, (25, 2))
        nearest, second = np.sort([np.hypot(rows - y, columns - x) for y, x in seeds], axis=0)[:2]
        cells = second - nearest > 3
        grey = np.where(cells, 170, 70) + random.normal(0, 18, cells.shape)
        for kind, picture in (("image", np.clip(grey, 0, 255)), ("label", 255 * cells)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(folder / kind / f"{number}.png")


MADE: dict[str, Callable[[Path], None]] = {"kvasir": make_kvasir, "voc": make_voc, "membranes": make_membranes}


class OwnProject:
    """What `unetpp init` and `dvc repro` of an installed wheel make of a folder, in an environment not activated."""

    def __init__(self, installed: Installed, place: Path):
        self.folder, self.place, self.bin = place / "project", place, installed.bin
        kept = {
            key: installed.environment[key]
            for key in ("HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS")
            if key in installed.environment
        }
        self.environment = kept | {"PATH": os.defpath, "DVC_SITE_CACHE_DIR": str(place / "site cache")}

    def run(self, where: Path, program: str, *words: str, expect: int = 0) -> str:
        """A program of the environment, called by its path; what it prints."""
        command = [str(self.bin / program), *words]
        done = subprocess.run(
            command, cwd=where, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == expect, done.stdout
        return done.stdout

    def init(self, data: str, *words: str, expect: int = 0) -> str:
        return self.run(self.place, "unetpp", "init", "project", "--data", data, *words, expect=expect)

    def dvc(self, *words: str, expect: int = 0) -> str:
        return self.run(self.folder, "dvc", *words, expect=expect)

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())
