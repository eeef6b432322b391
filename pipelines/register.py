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
from pathlib import Path

import torch
from torch import Tensor

from pipelines import registry, tracking
from pipelines.card import Family, family_description, version_description
from pipelines.files import sha256, write_json
from pipelines.params import load_params
from unetpp.errors import UserError
from unetpp.inference import Segmenter, load_model

# What the pipeline itself rewrites while it runs does not make the code another one.
REWRITTEN = ("dvc.lock", "reports")
TOLERANCE = 1e-5


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
    metrics = _read_json(evaluation / "report.json", "evaluate")
    manifest = _read_json(prepared / "manifest.json", "prepare")
    expected = [f"L{depth}" for depth in trained.depths]
    found = [depth for depth in metrics["depths"] if depth != "mean"]
    recommended = metrics["recommended_depth"]
    if sorted(found) != sorted(expected) or (recommended is not None and f"L{recommended}" not in expected):
        raise UserError(
            f"{evaluation / 'report.json'}: found the depths {', '.join(found)}, recommended {recommended}; "
            f"{model} has {', '.join(expected)}. It was measured on another model: run `dvc repro evaluate`"
        )
    hashes = sha256(model / "model.pt") + sha256(evaluation / "report.json")
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
    files["report"] = [evaluation / file for file in ("report.html", "depths.csv", "images.csv", "report.json")] + [
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
    segmenter = family.trained.segmenter(depth)
    config = flatten(segmenter.network.config() | {"depth": depth})
    model = registry.find_or_log_model(client, run, f"L{depth}", family.trained, depth, config, tags)
    # The step is the depth, so that the run's charts show each number over the depths.
    metrics = [(key, value, depth) for key, value in _numbers(family.metrics["depths"][f"L{depth}"])]
    test = ("test", family.manifest["splits"]["test"]["sha256"])
    tracking.log_metrics(client, run, metrics, model.model_id, test)
    version = str(registry.find_or_create_version(client, name, model, run, tags).version)
    reason = difference(registry.load_version(name, version), segmenter)
    registry.mark_verified(client, name, version, model.model_id, reason is None)
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
