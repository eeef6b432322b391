"""`unetpp reproduce`: check out in a new folder what a registered version was made from, run it again, and compare.

The folder is a clone at the recorded commit, with params.yaml, dvc.yaml and dvc.lock as the run recorded them. Raw data
come from DVC's cache or remote if they are there, or else from their source. All stages up to `evaluate` are run with
--force and without DVC's run cache; `register` is not run, so nothing changes in the registry.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import TopologicalSorter
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

import torch

from pipelines.core.files import read_results, read_yaml, scratch
from pipelines.core.private import dvc_environment
from pipelines.registry.lineage import Lineage, find_lineage
from pipelines.registry.run_log import read_hashes
from unetpp.errors import UserError
from unetpp.models.model_file import load_model

RAW = "data/raw"
RECORDED = ("params.yaml", "dvc.yaml", "dvc.lock")
REPORT, MODEL = "reports/evaluate/report.json", "models/train"
SPLIT = ("data/prepared", "reports/prepare/split.csv", "models/search")
# Numbers that depend on the machine. All others in a report are a function of data and weights.
MEASURED = ("latency", "images_per_s", "best_batch", "peak_memory", "cold_start")


@dataclass(frozen=True)
class Compared:
    """One line of the comparison."""

    what: str
    equal: bool | None  # None: unknown
    detail: str


def check_out(lineage: Lineage, repository: Path, out: Path) -> list[str]:
    """Make the folder; returns notes for the reader before anything runs.

    Args:
        repository: a folder in a clone that has the commit.

    Raises:
        UserError: the folder exists, the commit was not recorded or is not in the repository, or git is missing.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: found a file, or a folder that is not empty; expected a new one: set another --out")
    if lineage.commit is None:
        raise UserError(
            f"{lineage.uri}: no commit was recorded, because its run was not in a git repository; its code cannot be "
            "checked out"
        )
    try:
        root = Path(_git(repository, "rev-parse", "--show-toplevel"))
        prefix = _git(repository, "rev-parse", "--show-prefix")
        _git(repository, "cat-file", "-e", f"{lineage.commit}^{{commit}}")
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{repository}: found no git repository with the commit {lineage.commit}; run the command in a clone of "
            "the project that has it (git fetch)"
        ) from None
    notes = []
    if lineage.dirty:
        notes.append(f"the run's code had uncommitted changes: commit {lineage.commit[:12]} may not contain all of it")
    _git(repository, "clone", "--quiet", "--no-checkout", str(root), str(out))
    _git(out, "checkout", "--quiet", "--detach", lineage.commit)
    project = out / prefix
    for name in RECORDED:
        recorded = lineage.file(f"pipeline/{name}")
        if recorded:
            shutil.copyfile(recorded, project / name)
        else:
            notes.append(f"{name} was not recorded with the run: using the one in the commit")
    return notes + _data_notes(lineage, repository, project) + _package_notes(lineage)


def _data_notes(lineage: Lineage, repository: Path, project: Path) -> list[str]:
    """Restore the raw data from DVC's cache or remote; returns a note if that is not possible."""
    expected = lineage.hashes().get(RAW)
    if expected is None:
        return [f"no hash of {RAW} was recorded: the data will be fetched again, and cannot be compared"]
    cache = _dvc(repository, "cache", "dir").stdout.strip()
    local = project / ".dvc/config.local"
    local.write_text(f"[cache]\n    dir = {cache}\n", encoding="utf-8")
    try:
        if _dvc(project, "checkout", "ingest").returncode and _dvc(project, "pull", "ingest").returncode:
            source = f"{lineage.param('ingest.kind')} {lineage.param('ingest.location') or ''}".replace(" null", "")
            return [f"{RAW} ({expected}) is in no cache or remote: it will be fetched from its source, {source}"]
    finally:
        local.unlink()  # the stages run here with a cache of their own
    return []


def _package_notes(lineage: Lineage) -> list[str]:
    lock = lineage.file("pipeline/requirements.lock")
    if lock is None:
        return ["the packages of the run were not recorded: other versions may give different numbers"]
    others = []
    for word in lock.read_text(encoding="utf-8", errors="replace").split():
        package, is_pin, wanted = word.partition("==")
        if not is_pin:
            continue  # a hash
        try:
            found = installed(package.split("[")[0]).split("+")[0]
        except PackageNotFoundError:
            continue  # from an extra that is not installed here
        if found != wanted:
            others.append(f"{package} {found} (then {wanted})")
    return [f"packages whose versions differ from those of the run: {', '.join(others)}"] if others else []


def stages_to_run(project: Path) -> list[str]:
    """`evaluate` and the stages it needs, in order; `ingest` only if the raw data are missing."""
    stages = read_yaml(project / "dvc.yaml", "the run recorded another file", ("stages",))["stages"]
    makers = {path: name for name, stage in stages.items() for path in _outputs(stage)}
    needs = {name: {makers[one] for one in _inputs(stage) if one in makers} for name, stage in stages.items()}
    wanted, todo = set(), ["evaluate"]
    while todo:
        name = todo.pop()
        wanted.add(name)
        todo += needs.get(name, set()) - wanted
    if (project / RAW).is_dir():
        wanted.discard("ingest")
    return [name for name in TopologicalSorter(needs).static_order() if name in wanted]


def _inputs(stage: dict) -> Iterable[str]:
    """The dependencies of a stage; a project's code.yaml is listed among its params."""
    yield from stage.get("deps", [])
    for param in stage.get("params", []):
        yield from param if isinstance(param, dict) else ()


def _outputs(stage: dict) -> Iterable[str]:
    for key in ("outs", "metrics", "plots"):
        for output in stage.get(key, []):
            yield output if isinstance(output, str) else next(iter(output))


def run_again(project: Path, store: str) -> None:
    """Run the stages, one after the other; the model that train.init names is read from the registry `store`.

    Raises:
        UserError: one of them failed.
    """
    for stage in stages_to_run(project):
        done = _dvc(
            project, "repro", "--force", "--no-run-cache", "--single-item", stage, capture=False, init_store=store
        )
        if done.returncode:
            raise UserError(f"{project}: stage {stage} failed there, see above; the folder is kept")


def compare(lineage: Lineage, project: Path) -> list[Compared]:
    """Compare the results with what the run recorded."""
    then, now = lineage.hashes(), read_hashes(project / "dvc.lock")
    found = [_compare_hash(path, then.get(path), now.get(path)) for path in (RAW, *SPLIT)]
    found.append(_compare_weights(lineage.file(lineage.model), project / MODEL))
    found += _compare_metrics(lineage.file("report/report.json"), project / REPORT)
    return found


def _compare_hash(path: str, then: str | None, now: str | None) -> Compared:
    if then is None or now is None:
        return Compared(path, None, "its hash was not recorded" if then is None else "it was not made")
    return Compared(path, then == now, f"md5 {now}" if then == now else f"md5 {now}, then {then}")


def _compare_weights(then: Path | None, now: Path) -> Compared:
    if then is None:
        return Compared("weights", None, "the model was not recorded with the run")
    old, new = (load_model(path).network.state_dict() for path in (then, now))
    if {key: value.shape for key, value in old.items()} != {key: value.shape for key, value in new.items()}:
        return Compared("weights", False, "the network has another structure")
    if all(torch.equal(old[key], new[key]) for key in old):
        return Compared("weights", True, f"{len(old)} tensors, bit for bit")
    differ = [key for key in old if not torch.equal(old[key], new[key])]
    largest = max((old[key].double() - new[key].double()).abs().max().item() for key in differ)
    return Compared("weights", False, f"{len(differ)} of {len(old)} tensors differ, by up to {largest:.2g}")


def _compare_metrics(then: Path | None, now: Path) -> list[Compared]:
    if then is None:
        return [Compared("metrics", None, "report/report.json was not recorded with the run")]
    old, new = (read_results(path, "evaluate", ("depths",)) for path in (then, now))
    found = []
    for depth, values in old["depths"].items():
        others = new["depths"].get(depth, {})
        keys = [key for key in values if not key.startswith(MEASURED)]
        differ = [key for key in keys if values[key] != others.get(key)]
        detail = ", ".join(f"{key} {others.get(key)}, then {values[key]}" for key in differ)
        found.append(Compared(f"metrics of {depth}", not differ, detail or f"{len(keys)} numbers"))
    return found


def reproduce(model: str, out: Path, run: bool, store: str) -> bool:
    """Check out a version's state into `out` and, with `run`, run it again; prints and returns whether all is equal.

    Raises:
        UserError: see `find_lineage`, `check_out` and `run_again`.
    """
    out = out.absolute()
    with scratch() as folder:
        lineage = find_lineage(model, folder, store)
        notes = check_out(lineage, Path.cwd(), out)
        project = out / _git(Path.cwd(), "rev-parse", "--show-prefix")
        print(f"checked out {lineage.uri}, commit {lineage.commit}, in {project}", flush=True)
        for note in notes:
            print(f"note: {note}", flush=True)
        stages = stages_to_run(project)
        if not run:
            print(f"with --run, `unetpp reproduce` also runs {', '.join(stages)} there and compares the results")
            return True
        print(f"running {', '.join(stages)}", flush=True)
        run_again(project, store)
        compared = compare(lineage, project)
    words = {True: "equal", False: "DIFFERS", None: "unknown"}
    for one in compared:
        print(f"{words[one.equal]:<8}  {one.what}: {one.detail}")
    print("times and memory are not compared: they depend on the machine")
    equal = all(one.equal for one in compared)
    print("reproduced: everything that can be compared is equal" if equal else "not fully reproduced, see above")
    return equal


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _dvc(folder: Path, *arguments: str, capture: bool = True, init_store: str = "") -> subprocess.CompletedProcess:
    """Run a DVC command with the code of `folder` and the packages of this environment."""
    environment = (
        os.environ
        | dvc_environment()
        | {
            "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", ""),
            # Not in a project that the installed package runs: a folder of the user's could be taken for a package.
            **({"PYTHONPATH": str(folder)} if (folder / "unetpp/__init__.py").exists() else {}),
            "UNETPP_INIT_STORE": init_store,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",  # nothing there writes to another store
        }
    )
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=capture, text=True, check=False)
