"""Ctrl-C and SIGKILL of every stage, as real processes: one line, nothing half-written, and the same command goes on.

Ctrl-C goes to the whole group of processes, as a terminal sends it. Those on Ray are in `test_search.py` and
`training/test_ray_faults.py`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.pipelines.conftest import Project
from tests.waiting import wait_for

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
STAGES = ("ingest", "prepare", "search", "pages search", "train", "export", "evaluate", "pages depths", "register")
# Where a stage is in its middle: the functions that the signal comes in, the first of them in `make test`.
MOMENTS = {
    "ingest": ("storage.sources.fetch", "core.files.replacing", "core.files.write_json"),
    "prepare": ("dataset.loading.load_all", "dataset.near_duplicates.find_duplicates", "core.tables.write_rows"),
    "search": (
        "tuning.results.write_tables",
        "tuning.candidate_costs.count_costs",
        "tuning.results.write_architecture",
    ),
    "train": ("training.results.write_results", "training.in_process.run_alone", "core.files.write_json"),
    "export": ("core.files.replacing", "core.checksums.seal", "core.files.write_json"),
    "evaluate": ("evaluation.quality.measure_quality", "evaluation.gates.check_gates", "core.files.write_json"),
    "pages": ("core.files.replacing", "pages.html_page.render", "core.outputs.check_outputs"),
    "register": ("registry.model_versions.upload_model", "registry.aliases.deploy", "core.files.write_json"),
}
# The stage as a command, which sends itself the signal when it calls that function.
RUN = """
import importlib, os, runpy, signal, sys
number, owner, name, stage, *arguments = sys.argv[1:]
owner = importlib.import_module(owner)
real = getattr(owner, name)
def hit(*positional, **named):
    setattr(owner, name, real)
    os.kill(0 if int(number) == signal.SIGINT else os.getpid(), int(number))
    return real(*positional, **named)
setattr(owner, name, hit)
sys.argv[1:] = arguments
runpy.run_module(f"pipelines.{stage}", run_name="__main__", alter_sys=True)
"""
SMALL = {
    "prepare": {"size": 32, "num_workers": 2},
    "train": {"epochs": 2, "num_workers": 1, "batch_size": 8, "warmup_epochs": 1},
    "export": {"formats": []},
    "evaluate": {"latency_rounds": 3, "throughput_batch": 1, "page_images": 3},
}


def commands() -> dict[str, list[str]]:
    """The stages' arguments as dvc.yaml has them, without `python -m pipelines.`."""
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    pages = stages.pop("pages")
    for key, item in pages["foreach"].items():
        command = pages["do"]["cmd"].replace("${key}", key)
        for name, value in item.items():
            command = command.replace(f"${{item.{name}}}", value)
        stages[f"pages {key}"] = {"cmd": command}
    return {name: stage["cmd"].removeprefix("python -m pipelines.").split() for name, stage in stages.items()}


COMMANDS = commands()


class Stages(Project):
    """A project in which the stages run one after the other."""

    def start_at(self, stage: str, number: int, moment: str) -> subprocess.Popen:
        """The stage, which gets the signal in its middle."""
        owner, _, name = f"pipelines.{moment}".rpartition(".")
        return self._start(["-c", RUN, str(int(number)), owner, name, *COMMANDS[stage]])

    def start_watched(self, stage: str) -> subprocess.Popen:
        """The stage, which says what it imports."""
        module, *arguments = COMMANDS[stage]
        return self._start(["-X", "importtime", "-m", f"pipelines.{module}", *arguments])

    def run_to_end(self, stage: str) -> str:
        module, *arguments = COMMANDS[stage]
        return self.run(module, *arguments)

    def _start(self, arguments: list[str]) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        with open(self.folder / "cut.log", "w") as log:
            return subprocess.Popen(
                [sys.executable, "-u", *arguments],
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def outputs(self) -> dict[str, bytes]:
        """What stages have written, but for what is kept to go on from."""
        folders = ("data", "models", "reports")
        files = [path for name in folders for path in (self.folder / name).rglob("*") if path.is_file()]
        kept = ("data/cache", "reports/train/system.csv", "reports/train/unlogged", "reports/train/.unetpp")
        named = {str(path.relative_to(self.folder)): path for path in files}
        return {name: path.read_bytes() for name, path in named.items() if not name.startswith(kept)}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    folder = tmp_path_factory.mktemp("interrupts") / "a project"
    folder.mkdir()
    made = Stages(folder)
    made.set(SMALL)
    return made


def assert_interrupted(project: Stages, process: subprocess.Popen) -> None:
    """130, one line of it, and no process is left."""
    code = process.wait(60)
    log = (project.folder / "cut.log").read_text()
    said = [line for line in log.splitlines() if not line.startswith("import time:")]
    assert code == 130, log
    assert said[-1] == "interrupted; rerun the command to resume"
    assert "Traceback" not in log
    assert "Exception ignored" not in log

    def left() -> list[psutil.Process]:
        found = []
        for one in psutil.process_iter(["status"]):
            with suppress(ProcessLookupError, psutil.Error):
                if os.getsid(one.pid) == process.pid and one.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return found

    wait_for(lambda: not left())


def test_ctrl_c_in_the_middle_of_each_stage_is_one_line_and_the_same_command_goes_on(stages):
    for stage in STAGES:
        before = stages.outputs()
        assert_interrupted(stages, stages.start_at(stage, signal.SIGINT, MOMENTS[stage.partition(" ")[0]][0]))
        assert stages.outputs() == before, stage
        if stage != STAGES[-1]:  # how a registration goes on: fixture `home`
            stages.run_to_end(stage)
            assert stages.outputs() != before, stage
    assert not list(stages.folder.rglob("*.partial*"))


@pytest.mark.parametrize(
    ("stage", "seen"),
    [("register", r"\bpydantic$")]
    + [
        pytest.param(stage, seen, marks=pytest.mark.nightly)
        for stage in STAGES
        for seen in (r"\bpipelines$", r"\bpipelines\.core\.files$")
    ],
)
def test_ctrl_c_while_a_stage_starts_is_one_line(stages, stage, seen):
    process = stages.start_watched(stage)
    log = stages.folder / "cut.log"
    wait_for(lambda: re.search(seen, log.read_text(), re.MULTILINE), process, log)
    os.killpg(process.pid, signal.SIGINT)
    assert_interrupted(stages, process)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A project in which all stages ran."""
    folder = tmp_path_factory.mktemp("whole") / "a project"
    folder.mkdir()
    made = Stages(folder)
    made.set(SMALL)
    for stage in STAGES:
        made.run_to_end(stage)
    return made


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(("stage", "moment"), [(one, at) for one in STAGES for at in MOMENTS[one.partition(" ")[0]]])
def test_a_stage_that_is_cut_at_any_moment_leaves_what_was_there_or_all_that_is_new(whole, stage, moment, number):
    for kept in ("runs", "mlruns"):  # what is finished or registered would be taken as it is
        shutil.rmtree(whole.folder / kept, ignore_errors=True)
    (whole.folder / "mlflow.db").unlink(missing_ok=True)
    before = whole.outputs()
    process = whole.start_at(stage, number, moment)
    if number == signal.SIGINT:
        assert_interrupted(whole, process)
    else:
        assert process.wait(120) == -signal.SIGKILL, (whole.folder / "cut.log").read_text()
    after = {name: content for name, content in whole.outputs().items() if ".partial" not in name}
    assert after.keys() == before.keys()
    whole.run_to_end(stage)
    assert not [name for name in whole.outputs() if ".partial" in name]
