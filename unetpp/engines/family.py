"""A stand-in until branch engines is merged, which has this file."""
# ruff: noqa: ARG001

from dataclasses import dataclass
from pathlib import Path

from unetpp.engines.engine import Engine
from unetpp.models.about import About

MEASURED = "engines.json"


@dataclass(frozen=True)
class Family:
    about: About
    model: object
    exports: Path | None = None
    measured: dict | None = None

    @property
    def is_export(self) -> bool:
        return isinstance(self.model, Path)


def find_family(path, exports: Path | None = None, measured: Path | None = None) -> Family:
    from unetpp.models.listing import check_export
    from unetpp.models.loading import load

    if str(path).endswith(".onnx"):
        check_export(Path(path))
        return Family(load(Path(path).parent).about, Path(path))
    return as_family(load(path))


def as_family(trained) -> Family:
    return Family(trained.about, trained)


def open_engine(family: Family, depth=None, name="torch", *, heads=None, device=None, threads=None) -> Engine:
    from unetpp.engines.runtimes import ExportEngine
    from unetpp.inference import predictor

    if isinstance(family.model, Path):
        return ExportEngine(family.model, family.about)
    return predictor._torch_engine(family.model, depth, heads, device)  # pyright: ignore


def choose(family: Family, depth: int, size: tuple[int, int], batch: int = 1) -> tuple[str, str]:
    return "torch", "engine torch: the accuracy of others was not measured for this model"
