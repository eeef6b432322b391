"""The register stage: a run, a model and a registered version for every depth, and the aliases that deploy them.

Aliases move last, after every version was read back from the registry and predicts what the network itself
does. The same model and metrics registered again are the same run and the same versions.
"""

import argparse
import csv
import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines import tracking
from pipelines.files import sha256, write_json
from pipelines.params import load_params
from unetpp.errors import UserError
from unetpp.inference import Segmenter, Trained, load_model

# What the pipeline itself rewrites while it runs does not make the code another one.
REWRITTEN = ("dvc.lock", "reports")
TOLERANCE = 1e-5
# What a latency depends on most, of what metrics.json says of the machine.
MACHINE = ("device", "processor", "threads", "precision", "size_px")


@dataclass(frozen=True)
class Family:
    """What is registered: a trained network with what was measured, and where it all comes from."""

    name: str  # of the registered model
    trained: Trained
    metrics: dict  # of reports/evaluate/metrics.json
    manifest: dict  # of data/prepared/manifest.json
    data_sha256: str  # of that manifest
    fingerprint: str
    commit: str
    dirty: bool

    @property
    def recommended(self) -> int | None:
        return self.metrics["recommended_depth"]

    def tags(self, depth: int) -> dict[str, str]:
        """What a version says of itself, as tags that MLflow can filter by."""
        return {
            "depth": str(depth),
            "widths": ", ".join(map(str, self.trained.network.widths[: depth + 1])),
            "recommended": str(depth == self.recommended).lower(),
            # What `unetpp predict` has to know of a registered version.
            "in_channels": str(self.trained.network.in_channels),
            "size_px": json.dumps(self.trained.size),
            "fingerprint": self.fingerprint,
            "data_sha256": self.data_sha256,
            "git_commit": self.commit,
        }


def register(
    prepared: Path,
    model: Path,
    curves: Path,
    evaluation: Path,
    params: dict,
    experiment: str,
    name: str,
    uri: str,
) -> dict:
    """Log and register the family; returns what stands in versions.json.

    Raises:
        UserError: files that do not belong together, a store that is away, or a version that does not predict
            what its network does.
    """
    family = read_family(prepared, model, evaluation, name)
    with tracking.explained(uri):
        client = tracking.connect(uri)
        where = tracking.experiment_id(client, experiment)
        with tracking.open_run(client, where, f"{name} {family.fingerprint[:8]}", family.fingerprint) as run:
            if run.info.status != "FINISHED":
                print(f"logging run {run.info.run_name}: params, curves, data sets, report", flush=True)
                log_run(client, run, family, prepared, model, curves, evaluation, params)
            versions = {}
            for depth in family.trained.depths:
                versions[depth] = register_depth(client, run, family, depth)
                print(f"L{depth} is version {versions[depth]}: read back, predicts the same", flush=True)
        describe(client, run, family, versions)
        # Last, and `recommended` after the depths: until here whoever loads by alias gets the former family.
        aliases = {f"L{depth}": version for depth, version in versions.items()}
        if family.recommended is not None:
            aliases["recommended"] = versions[family.recommended]
        for alias, version in aliases.items():
            client.set_registered_model_alias(name, alias, version)
    return {
        "model_name": name,
        "tracking_uri": tracking.shown(uri),
        "run_id": run.info.run_id,
        "experiment_id": where,
        "versions": {f"L{depth}": int(version) for depth, version in versions.items()},
        "recommended": None if family.recommended is None else f"L{family.recommended}",
    }


def read_family(prepared: Path, model: Path, evaluation: Path, name: str) -> Family:
    """Read and check the files of the earlier stages."""
    trained = load_model(model)
    metrics = _read_json(evaluation / "metrics.json", "evaluate")
    manifest = _read_json(prepared / "manifest.json", "prepare")
    expected = [f"L{depth}" for depth in trained.depths]
    found = [depth for depth in metrics["depths"] if depth != "mean"]
    recommended = metrics["recommended_depth"]
    if sorted(found) != sorted(expected) or (recommended is not None and f"L{recommended}" not in expected):
        raise UserError(
            f"{evaluation / 'metrics.json'}: found the depths {', '.join(found)}, recommended {recommended}; "
            f"{model} has {', '.join(expected)}. It was measured on another model: run `dvc repro evaluate`"
        )
    hashes = sha256(model / "model.pt") + sha256(evaluation / "metrics.json")
    commit, dirty = git_commit(Path.cwd())
    return Family(
        name=name,
        trained=trained,
        metrics=metrics,
        manifest=manifest,
        data_sha256=sha256(prepared / "manifest.json"),
        fingerprint=hashlib.sha256(hashes.encode()).hexdigest(),
        commit=commit,
        dirty=dirty,
    )


def _read_json(path: Path, stage: str) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro {stage}`, which writes it") from None


def git_commit(folder: Path) -> tuple[str, bool]:
    """The commit that is checked out, and whether files differ from it; ("none", False) without git or a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--", ".", *(f":!{path}" for path in REWRITTEN))
    except (OSError, subprocess.CalledProcessError):
        return "none", False
    return commit, bool(changes)


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def log_run(
    client, run, family: Family, prepared: Path, model: Path, curves: Path, evaluation: Path, params: dict
) -> None:
    """Log what belongs to the whole family."""
    tags = {
        "data_sha256": family.data_sha256,
        "model_name": family.name,
        "git_dirty": str(family.dirty).lower(),
        "mlflow.source.name": "pipelines/register.py",
        "mlflow.source.git.commit": family.commit,  # the name that MLflow's page shows as the source version
    }
    tracking.log_params(client, run, flatten(params), tags)
    splits = family.manifest["splits"]
    datasets = {
        name: {
            "path": prepared / f"{name}.arrow",
            "sha256": split["sha256"],
            "profile": {"num_images": split["num_images"], "kinds": split["kinds"]},
        }
        for name, split in splits.items()
    }
    tracking.log_datasets(client, run, datasets)
    tracking.log_metrics(client, run, read_curves(curves))
    if "mean" in family.metrics["depths"]:
        values = family.metrics["depths"]["mean"]
        mean = [(f"{key}_mean_of_heads", values[key], 0) for key in ("iou_image", "dice_image", "latency_ms")]
        tracking.log_metrics(client, run, mean, dataset=("test", splits["test"]["sha256"]))
    files = {"report": [], "pipeline": [Path("dvc.lock"), Path("dvc.yaml"), Path("params.yaml")]}
    files["report"] = [evaluation / file for file in ("report.html", "depths.csv", "images.csv", "metrics.json")] + [
        curves
    ]
    files["model"] = [model / "model.pt"]  # all heads in one file: what further training and pruning start from
    for folder, paths in files.items():
        for path in paths:
            if path.is_file():  # dvc.lock is missing when the stage is run by hand
                client.log_artifact(run.info.run_id, str(path), folder)


def flatten(values: dict, prefix: str = "") -> dict[str, str]:
    """Nested sections as dotted keys; lists and null as JSON."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" == "register.tracking_uri" and value:
            flat[f"{prefix}{key}"] = tracking.shown(value)
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def read_curves(path: Path) -> list[tuple[str, float, int]]:
    """curves.csv as (key, value, epoch): `val_iou/L1` ... of each depth, `train_loss` and `learning_rate` once."""
    metrics = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                epoch = int(row["epoch"])
                for key in ("val_iou", "val_loss"):
                    metrics[f"{key}/{row['depth']}", epoch] = float(row[key])
                for key in ("train_loss", "learning_rate"):
                    metrics[key, epoch] = float(row[key])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not the training curves ({error!r}); run `dvc repro train`, which writes them"
        ) from None
    return [(key, value, epoch) for (key, epoch), value in metrics.items()]


def _numbers(values: dict) -> list[tuple[str, float]]:
    return [(key, float(value)) for key, value in values.items() if isinstance(value, int | float)]


def register_depth(client, run, family: Family, depth: int) -> str:
    """Log, measure, register and read back one depth; returns its version."""
    name, tags = family.name, family.tags(depth)
    network = family.trained.network
    segmenter = family.trained.segmenter(depth)
    example = np.full((2, network.in_channels, 2 * 2**depth + 5, 3 * 2**depth + 3), 0.5, np.float32)
    config = flatten(
        segmenter.network.config() | {"depth": depth, "mean": family.trained.mean, "std": family.trained.std}
    )
    model = tracking.find_or_log_model(client, run, f"L{depth}", segmenter, example, network.num_classes, config, tags)
    # The step is the depth, so that the run's charts show each number over the depths.
    metrics = [(key, value, depth) for key, value in _numbers(family.metrics["depths"][f"L{depth}"])]
    test = ("test", family.manifest["splits"]["test"]["sha256"])
    tracking.log_metrics(client, run, metrics, model.model_id, test)
    version = str(tracking.find_or_create_version(client, name, model, run, tags).version)
    reason = difference(tracking.load_version(name, version), segmenter)
    tracking.mark_verified(client, name, version, model.model_id, reason is None)
    if reason is not None:
        raise UserError(
            f"version {version} of {name} (L{depth}), read back from {tracking.shown(client.tracking_uri)}, {reason}. "
            "No alias was moved. The version is tagged verified = false; the same command registers a new one"
        )
    return version


def difference(loaded: Callable[[Tensor], Tensor], segmenter: Segmenter) -> str | None:
    """Why a module is not the segmenter, found on sizes that the export did not see; None where it is."""
    random = torch.Generator().manual_seed(0)
    for size in ((1, 33, 57), (3, 64, 48)):
        image = torch.rand((size[0], segmenter.network.in_channels, *size[1:]), generator=random)  # (N, C, H, W)
        with torch.inference_mode():
            found, expected = loaded(image), segmenter(image)
        if found.shape != expected.shape:
            return f"gives shape {tuple(found.shape)} where its network gives {tuple(expected.shape)}"
        if not torch.allclose(found, expected, atol=TOLERANCE, rtol=0):
            return f"differs from its network by up to {(found - expected).abs().max().item():.2g}"
    return None


def describe(client, run, family: Family, versions: dict[int, str]) -> None:
    """Write the descriptions: of every version, of the registered model, and of the run."""
    for depth, version in versions.items():
        client.update_model_version(family.name, version, version_description(family, versions, depth))
    text = family_description(family, versions)
    client.update_registered_model(family.name, text)
    client.set_tag(run.info.run_id, "mlflow.note.content", text)


def version_description(family: Family, versions: dict[int, str], depth: int) -> str:
    """Markdown of one version: the decision first, then what it rests on, then how to use it."""
    return "\n\n".join(
        [
            _decision(family, versions, depth),
            _table(family, versions, depth),
            f"**Load this version**\n\n{_snippet(family, versions[depth])}",
            *_notes(family),
        ]
    )


def family_description(family: Family, versions: dict[int, str]) -> str:
    """Markdown of the registered model: the same for the family that its aliases point to."""
    best = family.recommended
    title = (
        f"**Deploy `models:/{family.name}@recommended`: L{best}, version {versions[best]}.**"
        if best is not None
        else "**No depth is recommended.**"
    )
    return "\n\n".join(
        [
            f"{title} {family.metrics['recommendation']}",
            _table(family, versions, best),
            f"**Load it**\n\n{_snippet(family, '@recommended' if best is not None else f'@L{max(versions)}')}\n\n"
            f"The aliases {', '.join(f'`L{depth}`' for depth in versions)} "
            "are the depths of the family registered last.",
            *_notes(family),
        ]
    )


def _decision(family: Family, versions: dict[int, str], depth: int) -> str:
    # Plain text: the page lists the versions with the first words of this, as they are.
    best = family.recommended
    if best is None:
        title = f"L{depth}: no depth is recommended."
    elif depth == best:
        title = f"L{depth}: deploy this one."
    else:
        title = f"L{depth}: deploy L{best}, version {versions[best]}, instead."
    return f"{title} {family.metrics['recommendation']}"


def _table(family: Family, versions: dict[int, str], marked: int | None) -> str:
    rows = [_row(["depth", "version", "IoU (95 %)", "Dice", "ms (p95)", "images/s", "parameters", "file"])]
    rows.append("| :-- | :-- | :-- | :-- | :-- | :-- | :-- | :-- |")
    for depth, version in versions.items():
        m = family.metrics["depths"][f"L{depth}"]
        cells = [
            f"L{depth}" + (" recommended" if depth == family.recommended else ""),
            f"{version}",
            f"{m['iou_image']:.3f} ({m['iou_image_low']:.3f} to {m['iou_image_high']:.3f})",
            f"{m['dice_image']:.3f}",
            f"{m['latency_ms']:.1f} ({m['latency_p95_ms']:.1f})",
            f"{m['images_per_s']:.0f}",
            f"{m['parameters']:,}",
            f"{m['size_mib']:.1f} MiB",
        ]
        rows.append(_row([f"**{cell}**" for cell in cells] if depth == marked else cells))
    return "\n".join(rows)


def _row(cells: list[str]) -> str:
    # MLflow's page sets tables without any space between columns.
    return "| " + " | ".join(f"{cell}&nbsp;&nbsp;&nbsp;" for cell in cells) + " |"


def _notes(family: Family) -> list[str]:
    """What the table was measured on, what goes in and out, and where it comes from."""
    network, splits = family.trained.network, family.manifest["splits"]
    machine = ", ".join(f"{key} {value}" for key, value in family.metrics["machine"].items() if key in MACHINE)
    kinds = ", ".join(f"{count} {kind}" for kind, count in splits["test"]["kinds"].items())
    resized = (
        f" (trained on images resized to {family.trained.size} x {family.trained.size} px)"
        if family.trained.size
        else ""
    )
    out = "the foreground's probability" if network.num_classes == 1 else "a probability for each class"
    counts = ", ".join(f"{split['num_images']} {name}" for name, split in splits.items())
    return [
        f"**Table:** IoU and Dice: mean over the {splits['test']['num_images']} test images ({kinds}), "
        "foreground alone. ms: one image at a time, median (95th percentile); images/s: in batches; "
        f"both on {machine}.",
        f"**In:** float32 `(N, {network.in_channels}, H, W)` in [0, 1], any N, H and W{resized}. "
        f"**Out:** float32 `(N, {network.num_classes}, H, W)`, {out}.",
        f"**Data:** {counts} images; manifest `{family.data_sha256[:12]}`. "
        f"**Code:** commit `{family.commit[:12]}`{', with changes that were not committed' if family.dirty else ''}. "
        "**Run:** the source run of this version has the report, the curves, `dvc.lock` and `params.yaml`.",
    ]


def _snippet(family: Family, version: str) -> str:
    uri = f"models:/{family.name}{version if version.startswith('@') else f'/{version}'}"
    return (
        "```python\nimport mlflow, torch\n\n"
        f'model = mlflow.pytorch.load_model("{uri}")\n'
        f"probs = model(torch.rand(1, {family.trained.network.in_channels}, 200, 300))\n```\n\n"
        f"or `unetpp predict IMAGES --model {uri} --out masks`"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Register every depth of the trained network in MLflow.")
    parser.add_argument("--prepared", type=Path, required=True, help="folder of the prepare stage")
    parser.add_argument("--model", type=Path, required=True, help="folder of the train stage")
    parser.add_argument("--curves", type=Path, required=True, help="curves.csv of the train stage")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder of the evaluate stage")
    parser.add_argument("--out", type=Path, required=True, help="versions.json to write")
    arguments = parser.parse_args()
    params = load_params()
    versions = register(
        arguments.prepared,
        arguments.model,
        arguments.curves,
        arguments.evaluation,
        params=params.model_dump(by_alias=True, mode="json"),
        experiment=params.registry.experiment,
        name=params.registry.model_name,
        uri=tracking.tracking_uri(params.registry.tracking_uri),
    )
    write_json(arguments.out, versions)
    chosen = versions["recommended"]
    print(f"aliases moved: {', '.join(versions['versions'])}" + (f"; recommended is {chosen}" if chosen else ""))
    print("`unetpp mlflow` opens the page")


if __name__ == "__main__":
    from pipelines.stage import run_command

    run_command(main)
