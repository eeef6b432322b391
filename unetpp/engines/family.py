"""A trained network in all its forms: its own weights and its exported files, and how exact each of them is."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unetpp.engines.engine import ENGINES, Engine
from unetpp.engines.runtimes import open_export
from unetpp.engines.timings import probe, recall
from unetpp.errors import UserError, to_install
from unetpp.files import check_keys, read_json
from unetpp.models.about import About, find_file, read_about
from unetpp.models.addresses import FOLDERS, is_address, resolve
from unetpp.models.listing import LISTING, check_entry, check_export, read_listing

if TYPE_CHECKING:
    import torch

    from unetpp.models.model_file import Trained

Heads = Mapping[int, float] | Literal["mean"]
MEASURED = "engines.json"  # written by stage evaluate: the IoU on val that each engine loses (docs/engines.md)
PROBED_PX = 1024  # larger images are predicted in tiles


@dataclass(frozen=True)
class Family:
    """A trained network in all of its forms.

    Args:
        about: its inputs and outputs.
        model: its weights; or an .onnx, which is one depth in one format, without weights for torch.
        exports: folder with exports.json, made from exactly this model.
        measured: the content of engines.json, measured on exactly this model.
    """

    about: About
    model: "Path | Trained"
    exports: Path | None = None
    measured: Mapping[str, Any] | None = None

    @cached_property
    def files(self) -> dict[tuple[int, str], dict]:
        """The entries of exports.json by depth and format; for an .onnx, only its own."""
        entries = read_listing(self.exports)["exports"] if self.exports else []
        if self.is_export:
            entries = [one for one in entries if one["file"] == "/".join(Path(str(self.model)).absolute().parts[-2:])]
        return {(int(one["depth"].removeprefix("L")), one["format"]): one for one in entries}

    @property
    def is_export(self) -> bool:
        return isinstance(self.model, Path) and self.model.suffix == ".onnx"

    def engines(self, depth: int) -> list[str]:
        """The engines that are installed here and have a file or weights for a depth.

        Raises:
            UserError: the model has no such depth.
        """
        self.check_depth(depth)
        return [
            name
            for name, kind in ENGINES.items()
            if kind.is_here and (not self.is_export if kind.format is None else (depth, kind.format) in self.files)
        ]

    def usual(self, depth: int) -> str:
        """The default engine of a depth: torch, or else the first runtime that is installed.

        Raises:
            UserError: no installed engine can compute it.
        """
        here = self.engines(depth)
        if not here:
            raise UserError(f"{self.model}: no installed engine can compute this model: {to_install('exports')}")
        return here[0]

    def exact(self, depth: int) -> list[str]:
        """The `engines` whose measured IoU on val is within the tolerance; torch, the reference, always is."""
        return [name for name in self.engines(depth) if name == "torch" or self._is_within(depth, name)]

    def difference(self, depth: int, name: str) -> float | None:
        """IoU on val of an engine minus that of the network in eager mode; None: not measured for exactly this file."""
        row = self._row(depth, name)
        return None if row is None else row["difference_iou"]

    def check_depth(self, depth: int) -> None:
        """
        Raises:
            UserError: it has no such depth.
        """
        if depth not in self.about.depths:
            known = ", ".join(map(str, self.about.depths))
            raise UserError(f"depth: found {depth}; expected one of {known}, at which the model has a head")

    def _is_within(self, depth: int, name: str) -> bool:
        row = self._row(depth, name)
        return row is not None and bool(row["within"])

    def _row(self, depth: int, name: str) -> Mapping[str, Any] | None:
        wanted = ENGINES[name].format
        sha256 = self.files[depth, wanted]["sha256"] if wanted and (depth, wanted) in self.files else None
        for row in (self.measured or {}).get("engines", ()):
            if (row["depth"], row["engine"]) == (f"L{depth}", name) and row["sha256"] == sha256:
                return row
        return None


def find_family(
    path: str | Path, exports: str | Path | None = None, measured: str | Path | Mapping[str, Any] | None = None
) -> Family:
    """A model from a file or folder, without torch unless an earlier version wrote it.

    If the folder contains `exports/` and engines.json, like that of a registered version, both are used; the folder of
    an exported depth provides its own files.

    Args:
        path: a model.safetensors, its folder, or an .onnx in the folder of an export, whose sum is checked; or
            `models:/NAME@ALIAS`, a registered version.
        exports: folder with exports.json; ignored if it does not exist or belongs to another model.
        measured: an engines.json or its content; ignored if it does not exist or belongs to another model.

    Raises:
        UserError: no such model, a damaged one, or a damaged exports.json or engines.json.
    """
    path = Path(resolve(str(path), FOLDERS) if is_address(str(path)) else path)
    if path.suffix == ".pt2":
        raise UserError(f"{path}: a .pt2 may run its author's code: use its folder, {path.parent}")
    is_export = path.suffix == ".onnx"
    if is_export:
        check_export(path)
    file = find_file(path.parent if is_export else path)
    about, model = read_about(file), path if is_export else file
    if about is None:
        from unetpp.models.model_file import load_model  # late: it needs torch

        model = load_model(file)
        about = model.about
    known = {about.sha256}
    within, beside = file.parent / "exports", file.parent.parent
    if (within / LISTING).is_file():
        exports, measured = within, measured or file.parent / MEASURED
        known = {read_listing(within).get("model_sha256")}
    elif (beside / LISTING).is_file() and _lists(beside, file, about):
        exports = beside
        known = {read_listing(beside).get("model_sha256")}
    if exports is not None:
        exports = Path(exports)
        if not (exports / LISTING).is_file() or read_listing(exports).get("model_sha256") not in known:
            exports = None
    if isinstance(measured, str | Path):
        measured = _read_measured(Path(measured)) if Path(measured).is_file() else None
    if measured is not None and (measured["format"] != 1 or measured["model_sha256"] not in known):
        measured = None
    return Family(about, model, exports, measured)


def as_family(trained: "Trained") -> Family:
    """The family of a model in memory, which only torch computes."""
    return Family(trained.about, trained)


def _read_measured(path: Path) -> dict[str, Any]:
    fix = "copy it again, or run `dvc repro evaluate`"
    found = read_json(path, fix, ("format", "model_sha256", "engines"))
    for row in found["engines"] if found["format"] == 1 else ():
        check_keys(row, path, fix, ("depth", "engine", "sha256", "difference_iou", "within"))
    return found


def _lists(folder: Path, file: Path, about: About) -> bool:
    """Whether an exports.json lists exactly this model file, which is then that of an exported depth."""
    name = "/".join(file.absolute().parts[-2:])
    return any(one["file"] == name and one["sha256"] == about.sha256 for one in read_listing(folder)["exports"])


def open_engine(
    family: Family,
    depth: int | None = None,
    name: str = "torch",
    *,
    heads: Heads | None = None,
    device: "str | torch.device | None" = None,
    threads: int | None = None,
) -> Engine:
    """Open an engine for a depth, by default the deepest.

    Args:
        name: one of ENGINES.
        heads: average these heads instead, as in `Predictor`; only with torch.
        device: for torch, by default a GPU if there is one (a model in memory stays on its device); "cpu" keeps ONNX
            Runtime on the CPU, too.
        threads: for ONNX Runtime and OpenVINO, by default those of this process; torch uses its own setting.

    Raises:
        UserError: no such engine, an engine that is not installed or has no file for this depth, or no such heads.
    """
    if depth is not None and heads is not None:
        raise UserError(f"depth {depth} is one head and heads {heads} are several: pass only one of them")
    depth = family.about.depth if depth is None else depth
    here = family.engines(depth)
    if name not in here:
        raise UserError(f"engine {name}: {_why_not(depth, name)}; here are {', '.join(here) or 'none'}")
    kind = ENGINES[name]
    if kind.format is None:
        import torch  # late: other engines do not need it

        from unetpp.engines.torch_engine import deploy
        from unetpp.models.model_file import load_model

        model = family.model
        if isinstance(model, Path):
            model = load_model(model)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        chosen = dict.fromkeys(model.depths, 1.0) if heads == "mean" else heads
        return deploy(model, depth, chosen, name, device)
    if heads is not None:
        raise UserError(f"engine {name}: an exported file has one head; only torch averages heads: use engine torch")
    assert family.exports is not None
    file = check_entry(family.exports, family.files[depth, kind.format])
    where = None if device is None else str(device)
    return open_export(file, name, family.about.at(depth), threads=threads, device=where)


def _why_not(depth: int, name: str) -> str:
    kind = ENGINES.get(name)
    if kind is None:
        return f"no such engine; expected auto or one of {', '.join(ENGINES)}"
    if not kind.is_here:
        return f"{kind.runtime} is not installed, or this machine does not support {kind.precision}"
    if kind.format is None:
        return "an exported file has no weights for torch: use its folder"
    return f"L{depth} has no export in {kind.format}: `unetpp export --formats {kind.format}` writes it"


def choose(family: Family, depth: int, size: tuple[int, int], batch: int = 1) -> tuple[str, str]:
    """The engine for `--engine auto`, and one line that says why.

    This is the fastest engine on this machine whose IoU on val is within the tolerance. Engines are timed once, within
    seconds; the times are stored in `~/.cache/unetpp/engines.json`.

    Args:
        size: height and width of the images.

    Raises:
        UserError: no installed engine can compute the model.
    """
    name, exact = family.usual(depth), family.exact(depth)
    if family.is_export and not exact:  # naming a file is a choice of its exactness
        exact = [one for one in family.engines(depth) if ENGINES[one].precision != "bf16"]
    if not exact or (exact == ["torch"] and not family.measured):
        return name, f"engine {name}: the accuracy of other engines is not measured for this model (docs/engines.md)"
    if len(exact) == 1:
        return exact[0], f"engine {exact[0]}: no other engine installed here is within the tolerance"
    height, width = family.about.frame.sides(size) if family.about.frame else size
    height, width = min(height, PROBED_PX), min(width, PROBED_PX)
    key = (str(family.about.sha256), depth, height, width, batch, tuple(exact))
    times = recall(key) or probe(
        key, {name: lambda name=name: open_engine(family, depth, name) for name in exact}, (height, width), batch
    )
    name = min(times, key=lambda one: times[one])
    faster = f", {times['torch'] / times[name]:.1f} times as fast as torch" if name != "torch" in times else ""
    difference = family.difference(depth, name)
    points = "" if difference is None else f"; its IoU on val is {difference * 100:+.2f} points from fp32"
    return name, f"engine {name}: the fastest of {len(times)} here{faster}{points}"
