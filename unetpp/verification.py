"""Exported files, opened again in a process that knows nothing but them, against the eager network they were made of.

    verify(folder, trained, {"L1/model.onnx": 1, ...})

starts one such process for all files, since importing torch takes longer than comparing.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import unetpp
from unetpp.inference import Trained, load_model
from unetpp.runtimes import missing, of_segmenter, open_export, runtimes_of


@dataclass(frozen=True)
class Comparison:
    """The largest difference of probabilities between an exported file in a runtime and the eager network."""

    file: str
    runtime: str
    max_difference: float  # infinite where the runtime gives another shape, or no numbers


def make_examples(channels: int, depth: int, images: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
    """Three batches (N, C, H, W), of 2, 3 and 5 images; sides are odd, or no multiples of 2^depth, and differ.

    Args:
        images: (C, H, W) in [0, 1], of which they are cut, repeated where they are too small; without any, noise.
    """
    step = 2**depth
    rng = np.random.default_rng(0)
    examples = []
    for number, height, width in ((2, 2 * step + 1, step + 3), (3, step, 3 * step - 1), (5, 7, 11)):
        if images:
            rows, columns = np.arange(height), np.arange(width)
            chosen = [images[index % len(images)] for index in range(number)]
            batch = [one[:, rows % one.shape[1]][:, :, columns % one.shape[2]] for one in chosen]
            examples.append(np.stack(batch).astype(np.float32))
        else:
            examples.append(rng.random((number, channels, height, width), dtype=np.float32))
    return examples


def compare(
    folder: Path, trained: Trained, files: Mapping[str, int], images: Sequence[np.ndarray] = ()
) -> list[Comparison]:
    """Each file (by name in `folder`, with its depth) in each runtime that is installed; see `make_examples`."""
    found = []
    for depth in sorted(set(files.values())):
        examples = make_examples(trained.network.in_channels, depth, images)
        expected = [of_segmenter(trained.segmenter(depth))(example) for example in examples]
        for file in (name for name, of in files.items() if of == depth):
            for runtime in (name for name in runtimes_of(file) if not missing(name)):
                predict = open_export(folder / file, runtime)
                pairs = zip(map(predict, examples), expected, strict=True)
                found.append(Comparison(file, runtime, max(_difference(*pair) for pair in pairs)))
    return found


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max())


def verify(
    folder: Path, trained: Trained, files: Mapping[str, int], images: Sequence[np.ndarray] = ()
) -> list[Comparison]:
    """`compare` in a clean process.

    Raises:
        RuntimeError: the process ended with an error; the message holds what it wrote.
    """
    with tempfile.TemporaryDirectory() as place:
        trained.save(Path(place, "model.pt"))
        np.savez(Path(place, "images.npz"), *images)
        request = {"folder": str(folder.resolve()), "files": dict(files), "place": place}
        # The package is found where this one lies, also where it is not installed.
        path = os.pathsep.join([str(Path(unetpp.__file__).parent.parent), *filter(None, [os.getenv("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "unetpp.verification"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the process that opens the exports again failed:\n{done.stderr[-4000:]}")
        return [Comparison(**one) for one in json.loads(Path(place, "comparisons.json").read_text())]


def _main() -> None:
    request = json.loads(sys.stdin.read())
    place = Path(request["place"])
    with np.load(place / "images.npz") as archive:
        images = [archive[f"arr_{index}"] for index in range(len(archive.files))]
    found = compare(Path(request["folder"]), load_model(place), request["files"], images)
    (place / "comparisons.json").write_text(json.dumps([asdict(one) for one in found]))


if __name__ == "__main__":
    _main()
