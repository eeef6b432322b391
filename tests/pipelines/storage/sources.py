"""Small sets of images as folders and archives, and the ingest stage on them."""

import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pipelines.core.outputs import MARKER
from pipelines.core.params import load_params
from pipelines.core.sections.ingest import Ingest
from pipelines.storage.sources import fetch
from tests.conftest import REPOSITORY

INGEST = load_params(REPOSITORY / "params.yaml").ingest


def picture(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PAIR = {"images/a.png": picture(9), "masks/a.png": picture(1)}
BBBC038 = {"s1/images/s1.png": picture(9), "s1/masks/n1.png": picture(1), "s1/masks/n2.png": picture(2)}
CLASSES = PAIR | {"masks/nucleus/b.png": picture(1), "masks/membrane/b.png": picture(2)}
COCO = {"images/a.png": picture(9), "images/day 1/b.png": picture(8), "annotations.json": b"{}"}
COCO_PARTS = {"images/a.png": picture(9), "annotations/train.json": b"{}", "annotations/val.json": b"[]"}
SETS = {"pairs": PAIR, "bbbc038": BBBC038, "classes": CLASSES, "coco": COCO, "coco in parts": COCO_PARTS}


def located(kind: str, location, **changes) -> Ingest:
    return INGEST.model_copy(update={"kind": kind, "location": str(location)} | changes)


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, entries: Iterable) -> Path:
    """Entries are (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def write_tar(path: Path, entries: Iterable, mode: Any = "w:gz") -> Path:
    """Entries are (name or TarInfo, content)."""
    with tarfile.open(path, mode) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def write_source(kind: str, folder: Path, files: dict[str, bytes]) -> Path:
    """The files as a folder, a zip or a tar, called `set`."""
    return {"folder": write_folder, "zip": write_zip, "tar": write_tar}[kind](
        folder / "set", files if kind == "folder" else files.items()
    )


def link_entry() -> zipfile.ZipInfo:
    link = zipfile.ZipInfo("images/link.png")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return link


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def run(kind: str, location: Path, out: Path, **changes) -> dict:
    """Fetch a source to `out`; its description."""
    return fetch(located(kind, location, **changes), out, out.parent).description


def contents(root: Path) -> dict[str, bytes]:
    """The files by name, without the marker of an output."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def start_ingest(folder: Path, params: Ingest, before: str = "", stderr: Any = subprocess.PIPE) -> subprocess.Popen:
    """The stage as a process in `folder`, from there to data/raw by data/cache; `before` is code that runs first."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text()) | {"ingest": params.model_dump()}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    code = f"import runpy\n{before}\nrunpy.run_module('pipelines.ingest', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, "--out", "data/raw", "--cache", "data/cache"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=stderr)
