"""The export stage: write each depth as files for other programs, each reopened and compared with the network.

    python -m pipelines.export --model models/train --prepared data/prepared --out models/export

The formats, and how to load each: docs/exports.md.
"""

import argparse
import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines import detail
from pipelines.console.progress import watched
from pipelines.core.checksums import seal
from pipelines.core.command import run_command
from pipelines.core.files import replacing, write_json
from pipelines.core.outputs import check_outputs
from pipelines.core.params import load_params
from pipelines.core.sections.delivery import Export
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import read_manifest
from unetpp.data.scaling import scaled
from unetpp.engines.engine import missing
from unetpp.errors import UserError, to_install
from unetpp.export.graphs import capture, missing_for_onnx, save_onnx, save_pt2
from unetpp.export.quantisation import quantise
from unetpp.export.verification import Comparison, Verification
from unetpp.files import sha256
from unetpp.models.about import MODEL
from unetpp.models.listing import LISTING
from unetpp.models.loading import load
from unetpp.models.model_file import Trained, load_model

SCHEMA = 1
CALIBRATION_IMAGES = 32  # for `unetpp export`, which has no params.yaml
SAFETENSORS = "safetensors"
FILES = {SAFETENSORS: MODEL, "pt2": "model.pt2", "onnx": "model.onnx", "onnx-int8": "model-int8.onnx"}
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")


class Exported(NamedTuple):
    """One written file."""

    depth: int
    format: str

    @property
    def file(self) -> str:
        return f"L{self.depth}/{FILES[self.format]}"


def calibration_images(prepared: Path, count: int) -> list[np.ndarray]:
    """Images of the val split, spread evenly over it, as (C, H, W) float32 in [0, 1].

    Raises:
        UserError: no prepared data, or no image in val.
    """
    read_manifest(prepared).check(prepared, "val")
    split = Split(prepared / "val.arrow")
    if len(split) == 0:
        raise UserError(
            f"{prepared}/val.arrow: found no images; int8 is calibrated on val images: raise prepare.shares.val, or "
            "remove onnx-int8 from export.formats"
        )
    indices = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(int))
    return [np.ascontiguousarray(scaled(split[int(index)][0]).transpose(2, 0, 1)) for index in indices]


def possible(formats: Iterable[str]) -> tuple[list[str], list[str]]:
    """The formats that can be written and verified here, safetensors first, and a sentence for each other one."""
    runtimes = [name for name in ("onnxruntime", "openvino") if not missing(name)]
    lacking = {
        "onnx": missing_for_onnx() or ([] if runtimes else ["onnxruntime"]),
        "onnx-int8": missing_for_onnx() or ([] if "onnxruntime" in runtimes else ["onnxruntime"]),
    }
    chosen = [SAFETENSORS, *(name for name in FILES if name in set(formats) - {SAFETENSORS})]
    left_out = [
        f"skipped {name}: {' and '.join(lacking[name])} is not installed: {to_install('exports')}"
        for name in chosen
        if lacking.get(name)
    ]
    return [name for name in chosen if not lacking.get(name)], left_out


def write_depth(
    trained: Trained, depth: int, formats: Sequence[str], folder: Path, opset: int, images: Sequence[np.ndarray]
) -> None:
    """Write a depth's files of these formats into `folder`; int8 is calibrated on `images`, (C, H, W) each."""
    folder.mkdir()
    trained.folded(depth).save(folder / MODEL)
    if set(formats) == {SAFETENSORS}:
        return
    program = capture(trained.folded(depth).segmenter())
    if "pt2" in formats:
        save_pt2(program, folder / FILES["pt2"])
    if "onnx" in formats or "onnx-int8" in formats:
        save_onnx(program, folder / FILES["onnx"], opset)
    if "onnx-int8" in formats:
        quantise(folder / FILES["onnx"], folder / FILES["onnx-int8"], (image[np.newaxis] for image in images))
    if "onnx" not in formats:
        (folder / FILES["onnx"]).unlink(missing_ok=True)


def export(
    trained: Trained,
    out: Path,
    formats: Sequence[str],
    opset: int,
    tolerance: float,
    images: Sequence[np.ndarray] = (),
    depths: Sequence[int] | None = None,
) -> dict:
    """Write each depth's folder `out/L<depth>`, `out/exports.json` and `out/SHA256SUMS`, all or nothing.

    Args:
        formats: keys of FILES; safetensors is always written.
        tolerance: the largest allowed difference of probabilities from the eager network; int8 is judged by IoU.
        images: (C, H, W) float32 in [0, 1], of the kind that the model will see; needed for onnx-int8.
        depths: by default all.

    Returns:
        the contents of exports.json.

    Raises:
        UserError: there is no such depth, or a file differs from the eager network; the message says by how much.
    """
    formats, left_out = possible(formats)
    print("".join(f"{line}\n" for line in left_out), end="")
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        written = [Exported(depth, name) for depth in depths or trained.depths for name in formats]
        with Verification(partial, trained, images) as verification:
            for depth in watched(  # the last comparison should be the quickest
                sorted(depths or trained.depths, reverse=True), "export, depths"
            ):
                write_depth(trained, depth, formats, partial / f"L{depth}", opset, images)
                verification.add({one.file: depth for one in written if one.depth == depth})
            found = verification.results()
        check(written, found, tolerance)
        result = {
            "schema": SCHEMA,
            "model_sha256": trained.sha256,
            "exports": [describe(one, partial, found, opset) for one in written],
            "tolerance": tolerance,
            "calibration_images": len(images),
            "left_out": left_out,
            "machine": describe_machine(),
        }
        write_json(partial / LISTING, result)
        seal(partial)
    return result


def check(written: Iterable[Exported], found: Iterable[Comparison], tolerance: float) -> None:
    """Refuse exports that differ from the eager network.

    Raises:
        UserError: names each such file, its runtime and the difference.
    """
    limits = {one.file: 1.0 if one.format == "onnx-int8" else tolerance for one in written}
    wrong = [
        f"{one.file} in {one.runtime} by {one.max_difference:.2g}"
        for one in found
        if not one.max_difference <= limits[one.file]
    ]
    if wrong:
        raise UserError(
            f"exports differ from the network from which they were made: {'; '.join(wrong)}; expected at most "
            f"export.tolerance, {tolerance:g}: nothing was written; raise it if that is acceptable, or remove "
            "the format from export.formats"
        )


def describe(one: Exported, folder: Path, found: Iterable[Comparison], opset: int) -> dict:
    """An export's entry in exports.json."""
    path = folder / one.file
    differences = {each.runtime: each.max_difference for each in found if each.file == one.file}
    return {
        "depth": f"L{one.depth}",
        "format": one.format,
        "precision": "int8" if one.format == "onnx-int8" else "fp32",
        "file": one.file,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "max_difference": max(differences.values()),
        "max_differences": differences,
        "opset": opset if one.format.startswith("onnx") else None,
    }


def describe_machine() -> dict[str, str | None]:
    """The system and the packages that made the exports."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def summarise(result: dict) -> str:
    """The depths and formats, and how close fp32 is to the network."""
    exports = result["exports"]
    depths, formats = (list(dict.fromkeys(one[key] for one in exports)) for key in ("depth", "format"))
    furthest = max(one["max_difference"] for one in exports if one["precision"] == "fp32")
    return f"{', '.join(depths)} as {', '.join(formats)}; fp32 differs from the network by {furthest:.1e} at most"


def describe_exports(result: dict) -> str:
    """A line for each file: its size, and the largest difference from the eager network in each runtime."""
    lines = [f"  {'file':20}{'MiB':>8}  largest difference from the network"]
    for one in result["exports"]:
        differences = ", ".join(f"{value:.1e} in {name}" for name, value in one["max_differences"].items())
        lines.append(f"  {one['file']:20}{one['bytes'] / 2**20:8.2f}  {differences}")
    return "\n".join(lines)


def export_model(
    model: str,
    out: Path,
    depth: int | None,
    formats: Sequence[str],
    opset: int,
    tolerance: float,
    prepared: Path | None,
    overwrite: bool = False,
) -> None:
    """`unetpp export`: export one depth, or all, of a model; only onnx-int8 needs prepared data.

    Args:
        overwrite: replace files of the same names; other files in `out` stay.

    Raises:
        UserError: as `check_outputs`, `unetpp.load` and `export`; onnx-int8 without prepared data.
    """
    if "onnx-int8" in formats and prepared is None:
        raise UserError(
            "--formats onnx-int8: int8 is calibrated on images of the kind that the model will see: set --prepared to "
            "the folder that the prepare stage wrote, or leave out onnx-int8"
        )
    check_outputs([out], inputs=[Path(model), *([prepared] if prepared else [])], overwrite=overwrite)
    images = [] if prepared is None else calibration_images(prepared, CALIBRATION_IMAGES)
    result = export(load(model), out, formats, opset, tolerance, images, None if depth is None else [depth])
    print(f"{describe_exports(result)}\nwrote {out}")


def run(model: Path, prepared: Path, out: Path, settings: Export) -> dict:
    """The stage: `export` of every depth with the settings of params.yaml."""
    images = calibration_images(prepared, settings.calibration_images)
    return export(load_model(model), out, settings.formats, settings.opset, settings.tolerance, images)


def main() -> None:
    parser = argparse.ArgumentParser(prog="unetpp stage export", description="Write each depth for other programs.")
    parser.add_argument("--model", type=Path, required=True, help="folder that the train stage wrote")
    parser.add_argument("--prepared", type=Path, required=True, help="folder that the prepare stage wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the exports")
    arguments = parser.parse_args()
    check_outputs([arguments.out], inputs=[arguments.model, arguments.prepared])
    result = run(arguments.model, arguments.prepared, arguments.out, load_params().export)
    print(f"export: {summarise(result)}")
    detail(f"{describe_exports(result)}\nwrote {arguments.out}")


if __name__ == "__main__":
    run_command(main)
