"""The subject of `unetpp try`: a model with its depths, the recommended depth, and example images."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.core.files import read_results
from pipelines.pages.depth_page import read_page
from pipelines.prediction.opening import find_model
from pipelines.registry.find_report import IN_REPOSITORY, find_evaluation
from unetpp.engines.family import Family
from unetpp.errors import UserError
from unetpp.inference.predictor import Predictor
from unetpp.models.about import About

UNKNOWN = "No evaluation of this model was found, so no depth is recommended"


@dataclass(frozen=True)
class Example:
    """A test image of the depth report."""

    name: str
    rank: str | None  # best, median, worst, or None for one in between
    image: np.ndarray  # (H, W, C)
    mask: np.ndarray  # (H, W), the true one


@dataclass(frozen=True)
class Subject:
    """A model that is tried."""

    model: str  # the name that the user gave
    family: Family
    beside: str  # the reference depth, next to which all others are shown
    role: str  # of the reference depth: recommended, nearest, deepest, only
    why: str  # the reason for this depth, as a sentence
    examples: list[Example]
    _opened: dict[str, Predictor] = field(default_factory=dict)

    @property
    def about(self) -> About:
        return self.family.about

    @property
    def names(self) -> list[str]:
        """Its depths, L1 first."""
        return _names(self.family)

    def predictor(self, name: str) -> Predictor:
        """A depth on the fastest engine here that is exact enough, chosen when the depth is first requested."""
        if name not in self._opened:
            self._opened[name] = Predictor(self.family, int(name[1:]), engine="auto")
        return self._opened[name]


def find_subject(model: str) -> Subject:
    """A model with its recommended depth and the test images of its depth report.

    Raises:
        UserError: no such model, or a damaged one.
    """
    family = find_model(model)
    found = next((one for one in _reports(model) if _is_of(one, model, family.about.sha256)), None)
    return Subject(model, family, *recommend(_names(family), found), _examples(model, family.about.in_channels))


def _names(family: Family) -> list[str]:
    return [f"L{depth}" for depth in family.about.depths]


def recommend(names: list[str], report: dict | None) -> tuple[str, str, str]:
    """The reference depth, its role and the reason, from the report of an evaluation if there is one."""
    deepest = names[-1]
    if report is None:
        if len(names) == 1:
            return deepest, "only", f"This model has one depth, {deepest}."
        return deepest, "deepest", f"{UNKNOWN}: the others are shown next to the deepest, {deepest}."
    for role in ("recommended", "nearest"):
        name = f"L{report.get(f'{role}_depth')}"
        if name in names:
            return name, role, str(report.get("recommendation", f"{name} is {role}."))
    return deepest, "deepest", f"{report.get('recommendation', UNKNOWN)} This model has {', '.join(names)}."


def _folders(model: str) -> Iterator[Path]:
    """Folders that may contain an evaluation of the model: in the projects around it, and in this one."""
    if ":/" not in model:
        for parent in Path(model).absolute().parents[:4]:
            yield parent / IN_REPOSITORY
    yield Path(IN_REPOSITORY)


def _reports(model: str) -> Iterator[dict]:
    if ":/" in model:
        with suppress(UserError):  # a version without a report
            yield read_results(find_evaluation(model).folder / "report.json", "evaluate")
        return
    for folder in _folders(model):
        with suppress(UserError):
            yield read_results(folder / "report.json", "evaluate")


def _is_of(report: dict, model: str, digest: str | None) -> bool:
    """Whether a report is about exactly this model; the report of a registered version's run always is."""
    return ":/" in model or (digest is not None and report.get("model_sha256") == digest)


def _examples(model: str, channels: int) -> list[Example]:
    """The images of the nearest depth report whose images have this many channels; [] if there is none."""
    for folder in _folders(model):
        with suppress(UserError):
            _, samples = read_page(folder / "page")
            if all(one.image.shape[2] == channels for one in samples):
                return [Example(str(one.row["id"]), one.rank, one.image, one.mask) for one in samples]
    return []
