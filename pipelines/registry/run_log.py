"""What the MLflow run of a pipeline run contains: params, curves, datasets, system metrics, files, search trials."""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.checksums import seal
from pipelines.core.files import read_yaml
from pipelines.core.redaction import redacted
from pipelines.core.tables import read_rows
from pipelines.registry import live_log, runs
from pipelines.registry.model_card import Family
from unetpp.data.manifest import Manifest
from unetpp.errors import UserError
from unetpp.models.model_file import MODEL

# The origin of the numbers, besides the commit; those that exist are logged.
PIPELINE_FILES = ("code.yaml", "dvc.lock", "dvc.yaml", "params.yaml", "requirements.lock")
# The params that determine a model: a run's page shows and compares these. pipeline/params.yaml has all.
LOGGED = ("ingest.kind", "ingest.location", "prepare.", "model.", "search.widths", "train.", "augment.")
# Except limits, patience, and what only affects the speed of training.
LEFT_OUT = re.compile(
    r"prepare\.(max_|num_workers|no_foreground)|train\.(cpus_per_worker|max_failures|timeout_s|loader_workers|on_oom|"
    r"nonfinite|checkpoint_|compile|static_graph|compress_gradients|deterministic)"
)
REPORT_FILES = ("report.html", "report.json", "depths.csv", "images.csv")


@dataclass(frozen=True)
class Inputs:
    """The outputs of the earlier stages."""

    prepared: Path
    model: Path
    curves: Path
    evaluation: Path
    search: Path | None = None  # folder of search.csv and curves.csv
    exports: Path | None = None

    @property
    def system(self) -> Path:
        """System metrics during training: stage train wrote them next to the curves."""
        return self.curves.with_name("system.csv")

    @property
    def unlogged(self) -> Path:
        """The epochs that could not be logged to MLflow during training."""
        return self.curves.with_name(live_log.UNLOGGED)


def log_run(client, run, family: Family, inputs: Inputs, params: dict, folder: Path) -> None:
    """Log everything that belongs to the whole family.

    Args:
        folder: an empty folder in which to collect the files.
    """
    tags = {
        "data_sha256": family.data_sha256,
        "model_name": family.name,
        "git_dirty": str(family.dirty).lower(),
        "mlflow.source.name": "pipelines/register.py",
        "mlflow.source.git.commit": family.commit,  # the name that MLflow's page shows as the source version
    }
    data = describe_data(inputs.prepared, family.manifest, params.get("ingest"))
    for key in ("init", "encoder_weights"):
        if one := family.trained.info.get(key):
            tags[key] = f"{one['uri']} sha256 {one['sha256']}"
            data[key] = {"sha256": one["sha256"], "source_type": "model", "source": {"uri": one["uri"]}, "profile": {}}
    runs.log_params(client, run, telling(params), tags)
    runs.log_datasets(client, run, data)
    log_curves(client, run, inputs, family.trained.info.get("run"))
    runs.log_series(client, run, read_system(inputs.system))
    if "mean" in family.metrics["depths"]:
        test = ("test", family.manifest.splits["test"].sha256)
        mean = numbers(family.metrics["depths"]["mean"])
        runs.log_metrics(client, run, [(f"{key}_mean_of_heads", value, 0) for key, value in mean], dataset=test)
    for number, (name, trial) in enumerate(read_trials(inputs.search).items()):
        runs.log_trial(client, run, f"{family.fingerprint}/{number}", name, **trial)
    gather(inputs, folder)
    client.log_artifacts(run.info.run_id, str(folder))


def log_curves(client, run, inputs: Inputs, training: str | None) -> None:
    """Log what the run lacks of the curves: all of them, or the epochs that could not be logged during training."""
    curves, kept = read_curves(inputs.curves), live_log.read_unlogged(inputs.unlogged, training)
    names = sorted({key for key, _, _ in curves} | {"images_per_s"})
    known = runs.known_steps(client, run, *names) if "training" in run.data.tags else set()
    values = live_log.series(kept, known)
    runs.log_series(client, run, values)
    known |= {(key, step) for key, _, step, _ in values}
    runs.log_metrics(client, run, [(key, value, step) for key, value, step in curves if (key, step) not in known])


def gather(inputs: Inputs, folder: Path) -> None:
    """Link the run's files into `folder`, laid out as in the run, with SHA256SUMS of all of them."""
    files = {"report": [inputs.evaluation / name for name in REPORT_FILES] + [inputs.curves, inputs.system]}
    files["pipeline"] = [Path(name) for name in PIPELINE_FILES]  # in the folder in which the pipeline runs
    files["model"] = [inputs.model / MODEL]  # all heads: what further training and pruning start from
    files["search"] = sorted(inputs.search.glob("[!.]*")) if inputs.search else []
    for name, paths in files.items():
        for path in paths:
            if path.is_file():  # dvc.lock is missing if the stage is run by hand
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / path.name).symlink_to(path.absolute())
    seal(folder)


def numbers(values: dict) -> list[tuple[str, float]]:
    """The entries that are numbers; null is a number that could not be computed."""
    return [(key, float(value)) for key, value in values.items() if isinstance(value, int | float)]


def telling(params: dict) -> dict[str, str]:
    """The params that a run shows."""
    return {key: one for key, one in flatten(params).items() if key.startswith(LOGGED) and not LEFT_OUT.match(key)}


def flatten(values: dict, prefix: str = "") -> dict[str, str]:
    """Nested sections as dotted keys; lists, null, and mappings whose keys are values or colours, as JSON."""
    flat = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and all(str(one)[:1].isalpha() for one in value):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = redacted(value if isinstance(value, str) else json.dumps(value))
    return flat


def describe_data(prepared: Path, manifest: Manifest, ingest: dict | None) -> dict[str, dict]:
    """Each split as an MLflow dataset: its source, its hash, and its paths in DVC."""
    lock = Path("dvc.lock")
    hashes = read_hashes(lock, ("ingest", "prepare")) if lock.is_file() else {}
    return {
        name: {
            "sha256": split.sha256,
            **_source(ingest),
            "profile": {
                "num_images": split.num_images,
                **({"kinds": split.kinds} if split.kinds else {}),
                "file": f"{prepared}/{name}.arrow",
                "dvc": {path: f"md5:{value}" for path, value in hashes.items()},
                "raw_sha256": manifest.raw_sha256,
            },
        }
        for name, split in manifest.splits.items()
    }


def _source(ingest: dict | None) -> dict:
    kind, location = (ingest["kind"], ingest.get("location")) if ingest else ("unknown", None)
    if kind == "synthetic" and ingest:
        return {"source_type": kind, "source": {"uri": kind, **ingest["synthetic"]}}
    if kind in ("folder", "zip", "tar"):
        return {"source_type": "local", "source": {"uri": str(Path(location or ".").absolute()), "kind": kind}}
    # MLflow's page expects "uri" for a bucket and "url" for a web address.
    key = "url" if kind == "http" else "uri"
    return {"source_type": kind, "source": {key: redacted(location or kind), "kind": kind}}


def read_hashes(lock: Path, stages: Sequence[str] | None = None) -> dict[str, str]:
    """DVC's hash of each output in a dvc.lock by path, for some stages or for all.

    Raises:
        UserError: the file is not a dvc.lock.
    """
    found = read_yaml(lock, "`dvc repro` writes one", ("stages",))["stages"]
    try:
        outputs = [
            output for name, stage in found.items() if not stages or name in stages for output in stage.get("outs", [])
        ]
        return {output["path"]: output.get("md5") or output.get("etag", "") for output in outputs}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{lock}: not a dvc.lock ({error!r}); `dvc repro` writes one") from None


def _read_csv(path: Path, stage: str, what: str, add: Callable[[dict[str, str]], None]) -> None:
    try:
        for row in read_rows(path):
            add(row)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not {what} ({error!r}); run `dvc repro {stage}`, which writes them") from None


def read_curves(path: Path) -> list[tuple[str, float, int]]:
    """curves.csv as (key, value, epoch): `val_iou/L1` ... of each depth, `train_loss` and `learning_rate` once."""
    metrics = {}

    def add(row: dict[str, str]) -> None:
        epoch = int(row["epoch"])
        for key in ("val_iou", "val_loss"):
            metrics[f"{key}/{row['depth']}", epoch] = float(row[key])
        for key in ("train_loss", "learning_rate"):
            metrics[key, epoch] = float(row[key])

    _read_csv(path, "train", "the training curves", add)
    return [(key, value, epoch) for (key, epoch), value in metrics.items()]


def read_system(path: Path) -> list[tuple[str, float, int, int]]:
    """system.csv as (key, value, row, milliseconds since 1970); nothing where the file is missing."""
    metrics, steps = [], itertools.count()

    def add(row: dict[str, str]) -> None:
        step, time_ms = next(steps), int(1000 * float(row.pop("time")))
        metrics.extend((f"system/{key}", float(value), step, time_ms) for key, value in row.items() if value)

    if path.is_file():
        _read_csv(path, "train", "the system metrics", add)
    return metrics


def read_trials(search: Path | None) -> dict[str, dict]:
    """The trials of a search by name: params, metrics (key, value, step) and tags; empty if there was no search.

    For an epoch's numbers, the step is the epoch; for a depth's final numbers, it is the depth.
    """
    if search is None or not (search / "search.csv").is_file():
        return {}
    trials: dict[str, dict] = defaultdict(lambda: {"params": {}, "metrics": [], "tags": {}})
    measures = ("val_iou", "parameters", "macs", "latency_ms")
    facts = ("status", "reason", "chosen")  # about the whole trial, in the row of each of its depths
    known = {"trial", "depth", "on_front", "seconds", "epochs", *measures, *facts}

    def add(row: dict[str, str]) -> None:
        trial, depth = trials[row["trial"]], row["depth"]
        trial["params"] |= {key: value for key, value in row.items() if key not in known and value}
        trial["tags"] |= {key: row[key] for key in facts if row[key]}
        if depth:
            trial["tags"][f"on_front.{depth}"] = row["on_front"]
        step = int(depth.removeprefix("L") or 0)
        trial["metrics"] += [(key, float(row[key]), step) for key in measures if row[key]]
        trial["metrics"] += [(key, float(row[key]), 0) for key in ("seconds", "epochs") if row[key]]

    def add_epoch(row: dict[str, str]) -> None:
        if row["val_iou"]:
            metric = (f"val_iou/{row['depth']}", float(row["val_iou"]), int(row["epoch"]))
            trials[row["trial"]]["metrics"].append(metric)

    _read_csv(search / "search.csv", "search", "the trials of the search", add)
    if (search / "curves.csv").is_file():
        _read_csv(search / "curves.csv", "search", "the curves of the search", add_epoch)
    return {} if len(trials) < 2 else dict(trials)
