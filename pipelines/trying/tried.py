"""An image on the page of `unetpp try`: the answer and time of each depth, for display and as files."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from pipelines.pages.html_page import data_uri
from pipelines.pages.viewer import JPEG_PX, mask_layers, truth_outline
from unetpp.images.display import display
from unetpp.images.pictures import encode_png
from unetpp.images.pixels import resize
from unetpp.inference.overlay import overlay
from unetpp.inference.predictor import Predictor
from unetpp.models.about import About

SHOWN_PX = 1536  # the longest side that the page shows; files have the image's own size
PASSES, ENOUGH_S, SLOW_S = 5, 1.0, 10.0


@dataclass(frozen=True)
class Answer:
    """The answer of a depth to an image."""

    mask: np.ndarray  # (H, W) uint8, as `Predictor.mask` returns it
    ms: float  # the median of `passes`, from the decoded image to its mask
    passes: int
    engine: str
    why: str  # the reason for this engine, in a line
    num_objects: int | None = None  # for a model that separates objects


@dataclass
class Tried:
    """An image, its true mask where it is known, and the answers so far, by depth."""

    name: str
    image: np.ndarray  # (H, W, C)
    truth: np.ndarray | None = None  # (H, W)
    answers: dict[str, Answer] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The page shows every `step`-th pixel of masks."""
        return -(-max(self.image.shape[:2]) // SHOWN_PX)


def answer(predictor: Predictor, image: np.ndarray) -> Answer:
    """Predict an image (H, W, C): a warm-up pass, then up to five timed passes within about a second.

    If the warm-up pass takes more than ten seconds, its own time is reported.
    """
    mask, first_s = _timed(lambda: predictor.mask(image))
    times: list[float] = []
    while len(times) < PASSES and (sum(times) < ENOUGH_S if times else first_s < SLOW_S):
        times.append(_timed(lambda: predictor.mask(image))[1])
    num_objects = int(predictor.instances(image).max()) if predictor.about.separation() else None
    ms, passes = 1000 * median(times or [first_s]), len(times) or 1
    return Answer(mask, ms, passes, predictor.engine.name, predictor.why, num_objects)


def _timed(predict: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    began = time.perf_counter()
    return predict(), time.perf_counter() - began


def describe_image(tried: Tried) -> dict:
    """The image in the form that the page shows."""
    height, width = tried.image.shape[:2]
    step = tried.step
    shown = tried.image if step == 1 else resize(tried.image, (-(-height // step), -(-width // step)))
    outline = None if tried.truth is None else truth_outline(tried.truth[::step, ::step])
    return {
        "name": tried.name,
        "width": width,
        "height": height,
        "step": step,
        "image": data_uri(display(shown), "PNG" if max(shown.shape) <= JPEG_PX else "JPEG"),
        "outline": outline,
    }


def describe_answer(tried: Tried, name: str, about: About, beside: str) -> dict:
    """The answer of a depth in the form that the page shows, with the share of pixels that differ from `beside`."""
    found, other = tried.answers[name], tried.answers.get(beside)
    mask = found.mask[:: tried.step, :: tried.step]
    filled, lines = mask_layers(mask, about.multilabel, about.background, opacity=1)
    return {
        "ms": found.ms,
        "passes": found.passes,
        "engine": found.engine,
        "why": found.why,
        "objects": found.num_objects,
        "filled": filled,
        "lines": lines,
        "differs": None if other is None else float(np.mean(found.mask != other.mask)),
        "files": [file for file, _ in files(tried, name, about)],
    }


def files(tried: Tried, name: str, about: About) -> Iterator[tuple[dict, Callable[[], bytes]]]:
    """The files that can be saved of a depth's answer: label and name, and a function that makes the bytes.

    Masks are byte for byte those that `unetpp predict` writes.
    """
    stem, mask = f"{Path(tried.name).stem}-{name}", tried.answers[name].mask
    if about.multilabel:
        for bit, label in enumerate(about.classes):
            yield (
                {"label": f"mask of {label}", "name": f"{stem}-{label}.png"},
                lambda bit=bit: encode_png((mask >> bit & 1) * np.uint8(255)),
            )
    else:
        yield (
            {"label": "mask", "name": f"{stem}.png"},
            lambda: encode_png(mask * np.uint8(255) if about.num_classes == 1 else mask),
        )
    yield (
        {"label": "overlay", "name": f"{stem}-overlay.png"},
        lambda: encode_png(overlay(tried.image, mask, multilabel=about.multilabel, background=about.background)),
    )
