"""A network's exports, written in this process and not verified: what stage export writes, in a second or two."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.core.files import write_json
from pipelines.export import FILES, write_depth
from unetpp.files import sha256
from unetpp.models.model_file import Trained


def write_exports(
    folder: Path, trained: Trained, formats: Sequence[str] = ("onnx",), depths: Sequence[int] | None = None
) -> Path:
    """A folder of these formats, with its exports.json."""
    folder.mkdir(parents=True)
    images = [np.random.default_rng(0).random((3, 16, 16), dtype=np.float32)]
    listed = []
    for depth in depths or trained.depths:
        write_depth(trained, depth, formats, folder / f"L{depth}", 20, images)
        for one in formats:
            path = folder / f"L{depth}/{FILES[one]}"
            entry = {"depth": f"L{depth}", "format": one, "file": f"L{depth}/{FILES[one]}", "sha256": sha256(path)}
            listed.append(entry | {"bytes": path.stat().st_size})
    write_json(folder / "exports.json", {"schema": 1, "model_sha256": trained.sha256, "exports": listed})
    return folder
