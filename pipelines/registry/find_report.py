"""Find the evaluation that a user names: a folder, a git revision or DVC experiment, an MLflow run or a model."""

import os
import re
import subprocess
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.files import kept_folder, read_results
from pipelines.core.redaction import redacted
from pipelines.evaluation.compare import Evaluation
from pipelines.evaluation.scored import read_scored
from unetpp.errors import UserError

FILES = ("report.html", "report.json", "images.csv")
IN_REPOSITORY = "reports/evaluate"
EXPECTED = (
    "expected a folder that the evaluate stage wrote, a git revision or DVC experiment, the id of an MLflow run, or "
    "models:/NAME@ALIAS"
)


@dataclass(frozen=True)
class Found:
    """A folder that contains FILES."""

    folder: Path
    version_depth: int | None = None  # the depth, if a registered version was named; None for a whole evaluation


def find_evaluation(name: str) -> Found:
    """The evaluation that `name` stands for; one that is not in a folder here is copied to a temporary folder.

    Args:
        name: a folder (of the stage, or of the project), one of the stage's files, `models:/NAME@ALIAS` or
            `models:/NAME/VERSION`, the id of an MLflow run (also `runs:/ID`), or a git revision or DVC experiment.

    Raises:
        UserError: it does not exist; the message names what exists.
    """
    path = Path(name)
    if path.is_file():
        path = path.parent
    if path.is_dir():
        for folder in (path, path / "evaluate", path / IN_REPOSITORY):
            if (folder / "report.json").is_file():
                return Found(folder)
        raise UserError(f"{name}: found no report.json in this folder; {EXPECTED}. `dvc repro evaluate` writes it")
    if name.startswith("models:/") or re.fullmatch(r"(runs:/)?[0-9a-f]{32}", name):
        return _from_mlflow(name)
    return Found(_from_git(name))


def read_evaluation(found: Found) -> Evaluation:
    """Read report.json and images.csv of a folder.

    Raises:
        UserError: one of them is missing or unreadable.
    """
    report = read_results(found.folder / "report.json", "evaluate")
    if not isinstance(report.get("depths"), dict):
        raise UserError(f"{found.folder / 'report.json'}: found no key `depths`; run `dvc repro evaluate`")
    return Evaluation(report, read_scored(found.folder / "images.csv"), found.version_depth)


def open_page(page: Path, browser: bool) -> None:
    """Print a page's address; with `browser`, also open it if there is a browser.

    Raises:
        UserError: there is no such page.
    """
    if not page.is_file():
        raise UserError(f"{page}: no such file; `dvc repro evaluate` writes it")
    open_address(page.absolute().as_uri(), browser)


def open_address(address: str, browser: bool) -> None:
    """Print an address; with `browser`, also open it if there is a browser."""
    print(address, flush=True)
    # Without a display there are at most text browsers, which would take over the terminal.
    screen = sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if browser and screen:
        webbrowser.open(address)


def _from_git(name: str) -> Path:
    import dvc.api  # takes a second, and is not needed for a folder
    from dvc.exceptions import DvcException

    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    listed = _git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps/") or ""
    # refs/exps/ab/<the other 38 digits of the commit that it started from>/<name>
    found = re.findall(r"^(\w+) refs/exps/\w\w/\w{38}/(.+)$", listed, re.MULTILINE)
    named = {name: commit for commit, name in found}
    commit = commit or named.get(name)
    if commit is None:
        raise UserError(f"{name}: no such folder, git revision or DVC experiment; {EXPECTED}. {_existing(named)}")
    folder = kept_folder()
    for file in FILES:
        try:
            # From git, or from DVC's cache or remote, wherever that commit keeps it.
            with dvc.api.open(f"{IN_REPOSITORY}/{file}", rev=commit, mode="rb") as stored:
                (folder / file).write_bytes(stored.read())
        except (DvcException, FileNotFoundError) as error:
            raise UserError(
                f"{name}: commit {commit[:12]} has no {IN_REPOSITORY}/{file} ({error}); if it was made on another "
                "machine, run `dvc push` there and `dvc pull` here, or name its MLflow run or model"
            ) from None
    return folder


def _git(*arguments: str) -> str | None:
    """The output of git; None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _existing(experiments: dict[str, str]) -> str:
    """The evaluations that are quick to find, as a hint."""
    here = [f"the folder {IN_REPOSITORY}"] if Path(IN_REPOSITORY, "report.json").is_file() else []
    here += [f"the experiment {name}" for name in sorted(experiments)[:10]]
    return f"Available here: {', '.join(here)}" if here else "There is none here: `dvc repro` makes one"


def _from_mlflow(name: str) -> Found:
    from pipelines.registry import mlflow_store, model_versions  # takes seconds, and is not needed for a folder

    if name.startswith("models:/"):
        model_versions.parse_uri(name)
    with mlflow_store.reading(mlflow_store.project_uri()) as client:
        run_id, depth = name.removeprefix("runs:/"), None
        if name.startswith("models:/"):
            version = model_versions.find_version(client, name)
            run_id, depth = str(version.run_id), version.tags.get("depth")
        try:
            folder = client.download_artifacts(run_id, "report", str(kept_folder()))
        except (mlflow_store.MlflowException, FileNotFoundError) as error:
            if isinstance(error, mlflow_store.MlflowException) and error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"{name}: found no such run with a folder `report` in {redacted(client.tracking_uri)} ({error}); "
                f"{_runs(client)}"
            ) from None
    return Found(Path(folder), None if depth is None else int(depth))


def _runs(client) -> str:
    """The newest runs, by id and name."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=5, order_by=["attributes.start_time DESC"])
    listed = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in runs)
    return f"the newest runs there are {listed}" if listed else "there are no runs"
