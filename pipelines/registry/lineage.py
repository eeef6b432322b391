"""`unetpp lineage`: what a registered version was made from, as its run in MLflow recorded it.

What was not recorded is shown as not recorded; it is never guessed from the files in this folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core.checksums import SUMS
from pipelines.core.files import read_results, scratch
from pipelines.core.numbers import fixed, points
from pipelines.registry import mlflow_store, model_versions
from pipelines.registry.load import download_sums
from pipelines.registry.run_log import read_hashes
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.models.about import MODEL, OLDER

NOT_RECORDED = "not recorded"
# The alias that `unetpp lineage NAME` means if none is given: the first one that exists.
USUAL = ("champion", "recommended")
RECORDED = ("pipeline", "report", "model")  # folders of a run's artifacts


@dataclass(frozen=True)
class Lineage:
    """A version, its run, and the run's files in a folder on this machine."""

    uri: str  # models:/NAME/VERSION
    aliases: list[str]
    tags: dict[str, str]  # of the version
    run: Any  # MLflow's run; None if it was deleted
    folder: Path  # contains pipeline/, report/ and model/, as far as they were recorded
    weights: str | None  # sha256 of model.safetensors

    def file(self, name: str) -> Path | None:
        """A file of the run, such as pipeline/dvc.lock; None if it was not recorded."""
        return self.folder / name if (self.folder / name).is_file() else None

    @property
    def model(self) -> str:
        """The run's model file with all heads; earlier runs have a model.pt."""
        older = f"model/{OLDER}"
        return older if self.file(older) else f"model/{MODEL}"

    def param(self, key: str) -> str | None:
        return self.run.data.params.get(key) if self.run else None

    def tag(self, *keys: str) -> str | None:
        """The first of these tags that the run or the version has."""
        both = self.tags | (self.run.data.tags if self.run else {})
        return next((both[key] for key in keys if both.get(key)), None)

    @property
    def commit(self) -> str | None:
        commit = self.tag("mlflow.source.git.commit", "git_commit", "commit")
        return None if commit == "none" else commit

    @property
    def dirty(self) -> bool:
        return self.tag("git_dirty") == "true"

    def hashes(self) -> dict[str, str]:
        """DVC's hash of each output by path, from dvc.lock."""
        lock = self.file("pipeline/dvc.lock")
        return read_hashes(lock) if lock else {}


def find_lineage(model: str, folder: Path, store: str) -> Lineage:
    """Fetch what was recorded about a version.

    Args:
        model: NAME, NAME@ALIAS or NAME/VERSION, with or without models:/.
        folder: an empty folder for the run's files.
        store: URI of the registry.

    Raises:
        UserError: no such version, no store, or the run's files are missing.
    """
    uri = "models:/" + model.removeprefix("models:/")
    with mlflow_store.reading(store) as client:
        if "@" not in uri and "/" not in uri.removeprefix("models:/"):
            uri = _usual(client, uri)
        version = model_versions.find_version(client, uri)
        name = version.name
        aliases = client.get_registered_model(name).aliases
        run = _run(client, version.run_id)
        if run is not None:
            there = {one.path for one in client.list_artifacts(run.info.run_id)}
            if not there and "fingerprint" in run.data.tags and run.info.status == "FINISHED":
                raise UserError(
                    f"{uri}: found no files of its run {run.info.run_id} in {run.info.artifact_uri}; expected those "
                    "that the register stage uploads: restore the mlruns/ that belongs to mlflow.db, or register again"
                )
            for part in there & set(RECORDED):
                client.download_artifacts(run.info.run_id, part, str(folder))
        return Lineage(
            uri=f"models:/{name}/{version.version}",
            aliases=sorted(alias for alias, number in aliases.items() if str(number) == str(version.version)),
            tags=version.tags,
            run=run,
            folder=folder,
            weights=_weights(name, str(version.version)),
        )


def _usual(client, uri: str) -> str:
    known = model_versions.find_model(client, uri.removeprefix("models:/")).aliases
    return f"{uri}@{next((alias for alias in USUAL if alias in known), USUAL[0])}"


def _run(client, run_id: str | None):
    try:
        return client.get_run(run_id) if run_id else None
    except model_versions.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _weights(name: str, version: str) -> str | None:
    with scratch() as folder:
        try:
            hashes = download_sums(name, version, folder)
        except UserError:
            return None
        return hashes.get("model.safetensors")


def rows(lineage: Lineage) -> list[tuple[str, str]]:
    """The rows that `unetpp lineage` prints, as (what, value)."""
    run, hashes = lineage.run, lineage.hashes()

    def dvc(path: str) -> str:
        return f"{path} md5 {hashes[path]}" if path in hashes else f"{path}: {NOT_RECORDED} (no dvc.lock in the run)"

    def file(name: str) -> str:
        path = lineage.file(name)
        return f"{path.name} sha256 {sha256(path)}" if path else f"{name}: {NOT_RECORDED}"

    aliases = f" ({', '.join(lineage.aliases)})" if lineage.aliases else ""
    kind, location = lineage.param("ingest.kind"), lineage.param("ingest.location")
    source = kind if location in (None, "null") else f"{kind} {location}"
    inputs = sorted(run.inputs.dataset_inputs, key=lambda one: one.dataset.name) if run and run.inputs else []
    dirty = ", with uncommitted changes" if lineage.dirty else ""
    return [
        ("model", f"{lineage.uri}, L{lineage.tags.get('depth', '?')}{aliases}"),
        ("run", f"{run.info.run_id}, {run.info.run_name}, {run.info.status}" if run else "deleted"),
        ("data source", source or NOT_RECORDED),
        ("data, raw", dvc("data/raw")),
        ("data, prepared", f"manifest sha256 {lineage.tag('data_sha256') or NOT_RECORDED}"),
        ("", dvc("data/prepared")),
        ("split", dvc("reports/prepare/split.csv")),
        *(("", f"{one.dataset.name}: sha256 {one.dataset.digest}...") for one in inputs),
        *([("initial weights", begun)] if (begun := lineage.tag("init")) else []),
        *([("encoder", begun)] if (begun := lineage.tag("encoder_weights")) else []),
        ("params", file("pipeline/params.yaml")),
        *(("", line) for line in _params(lineage)),
        ("code", (lineage.commit or NOT_RECORDED) + dirty),
        ("pipeline", file("pipeline/dvc.lock")),
        ("checkpoint", file(lineage.model)),
        ("weights", f"model.safetensors sha256 {lineage.weights}" if lineage.weights else f"{SUMS} {NOT_RECORDED}"),
        ("environment", file("pipeline/requirements.lock")),
        *(("engines" * (not number), line) for number, line in enumerate(_engines(lineage))),
    ]


def _engines(lineage: Lineage) -> list[str]:
    """The engines of the version's depth, as measured by the evaluation of its run."""
    report, depth = lineage.file("report/report.json"), f"L{lineage.tags.get('depth')}"
    found = (read_results(report, "evaluate").get("engines") or {}).get("rows", []) if report else []
    lines = [_engine(row) for row in found if row["depth"] == depth]
    return lines or [NOT_RECORDED]


def _engine(row: dict) -> str:
    val, lost = fixed(row["val_iou_image"]), points(row["val_difference_iou"], 2)
    within = "" if row["within"] else ", beyond the tolerance"
    auto = "; the choice of `auto` there" if row["auto"] else ""
    return f"{row['engine']}: {row['latency_ms']:.1f} ms, IoU on val {val} ({lost} points){within}{auto}"


def _params(lineage: Lineage) -> list[str]:
    sections: dict[str, list[str]] = {}
    for key, value in sorted((lineage.run.data.params if lineage.run else {}).items()):
        section, _, rest = key.partition(".")
        sections.setdefault(section, []).append(f"{rest}={value}")
    return [f"{section}: {' '.join(values)}" for section, values in sections.items()]


def show_lineage(model: str, store: str) -> str:
    """The lines that `unetpp lineage MODEL` prints."""
    with scratch() as folder:
        found = rows(find_lineage(model, folder, store))
    width = max(len(what) for what, _ in found)
    return "\n".join(f"{what:<{width}}  {value}" for what, value in found)
