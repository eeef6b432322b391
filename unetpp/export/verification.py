"""Compare exported files, opened in a separate process, with the eager network that they were made from.

A single process opens all files, because importing torch takes longer than comparing, while the next are written:

    with Verification(folder, trained) as verification:
        ...                                          # write L1/model.onnx
        verification.add({"L1/model.onnx": 1})
        found = verification.results()
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from unetpp.data.scaling import measure_statistics
from unetpp.engines.engine import OWN, missing
from unetpp.engines.runtimes import RUNTIMES, ExportEngine, open_export
from unetpp.engines.torch_engine import TorchEngine
from unetpp.models.about import MODEL, About
from unetpp.models.model_file import Trained, load_model

Predict = Callable[..., np.ndarray]  # takes images, and for an engine statistics


@dataclass(frozen=True)
class Comparison:
    """The largest difference of probabilities between an exported file in a runtime and the eager network."""

    file: str
    runtime: str
    max_difference: float  # infinite if the runtime returns another shape, or NaN


def make_examples(channels: int, depth: int, images: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
    """Three batches (N, C, H, W), of 2, 3 and 5 images, with different sides that are odd or not multiples of 2^depth.

    Args:
        images: (C, H, W) in [0, 1], from which they are cut, repeated if they are too small; by default noise.
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
        about, examples = trained.about.at(depth), make_examples(trained.network.in_channels, depth, images)
        eager = TorchEngine(trained.segmenter(depth), about)
        expected = [eager(example) for example in examples]
        for file in (name for name, of in files.items() if of == depth):
            for runtime, predict in opened(folder / file, about).items():
                pairs = zip(examples, expected, strict=True)
                differences = [_difference(predict, *pair) for pair in pairs]
                if getattr(predict, "takes_parts", False):  # with the statistics of other images
                    parts, given = examples[-1], measure_statistics(examples[-1])[::-1].copy()
                    as_part = partial(predict, statistics=given)
                    differences.append(_difference(as_part, parts, eager(parts, given)))
                    if isinstance(predict, ExportEngine):  # as other programs call it
                        own = np.tile(np.array(OWN, np.float32), (1, given.shape[1], 1))
                        differences.append(_difference(partial(predict, statistics=own), parts, expected[-1]))
                found.append(Comparison(file, runtime, max(differences)))
    return found


def opened(file: Path, about: About) -> dict[str, Predict]:
    """Open a file that was written here in each installed runtime that reads it."""
    if file.suffix == ".safetensors":
        trained = load_model(file)
        return {"torch": TorchEngine(trained.segmenter(), trained.about)}
    if file.suffix == ".pt2":  # our own: opening a foreign .pt2 can run its author's code
        module = torch.export.load(file).module()
        return {"torch": lambda image: module(torch.from_numpy(image)).detach().numpy()}
    return {name: open_export(file, name, about) for name in RUNTIMES if not missing(name)}


def _difference(predict: Predict, example: np.ndarray, expected: np.ndarray) -> float:
    try:
        found = predict(example)
    except Exception:  # a result of another shape, or a size that the runtime refuses
        return float("inf")
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max())


class Verification:
    """`compare` in a separate process, for files that are added as they are written.

    Args:
        folder: where the files are written.
        trained: the network that they are made from.
        images: see `make_examples`.
    """

    def __init__(self, folder: Path, trained: Trained, images: Sequence[np.ndarray] = ()):
        self.folder, self.trained, self.images = folder, trained, images

    def __enter__(self) -> "Verification":
        self._place = tempfile.TemporaryDirectory(
            dir=self.folder.parent
        )  # in a place that is cleaned up after a killed stage
        place = Path(self._place.name)
        self.trained.save(place / MODEL)
        np.savez(place / "images.npz", *self.images)
        # The child process finds this package even if it is not installed.
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.getenv("PYTHONPATH")])])
        with open(place / "stderr", "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "unetpp.export.verification", str(self.folder.resolve()), str(place)],
                stdin=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"PYTHONPATH": path},
            )
        return self

    def add(self, files: Mapping[str, int]) -> None:
        """Add complete files: name in the folder, and depth."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended; `results` says why
            self._process.stdin.write(json.dumps(dict(files)) + "\n")
            self._process.stdin.flush()

    def results(self) -> list[Comparison]:
        """The comparisons of all added files in all installed runtimes; waits until they are complete.

        Raises:
            RuntimeError: the process failed; the message contains its output.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        place = Path(self._place.name)
        if self._process.wait() != 0:
            raise RuntimeError(
                f"the process that verifies the exports failed with exit code {self._process.returncode}:\n"
                + (place / "stderr").read_text(errors="replace")[-4000:]
            )
        return [Comparison(**one) for one in json.loads((place / "comparisons.json").read_text())]

    def __exit__(self, *_) -> None:
        self._process.kill()  # has no effect if it has ended
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._place.cleanup()


def _main(folder: Path, place: Path) -> None:
    trained = load_model(place)
    with np.load(place / "images.npz") as archive:
        images = [archive[f"arr_{index}"] for index in range(len(archive.files))]
    found = [asdict(one) for line in sys.stdin for one in compare(folder, trained, json.loads(line), images)]
    (place / "comparisons.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
