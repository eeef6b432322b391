"""Training with several workers under Ray Train survives what can happen to its processes, and ends with the same bits.

The uninterrupted run that all are compared with has the same two processes without Ray.
"""

import itertools
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.core.params import load_params
from pipelines.training.spec import make_spec
from tests.pipelines.conftest import Project
from tests.pipelines.training.small import ARGUMENTS, run_processes
from tests.ray_cluster import assert_locked
from unetpp.models.model_file import load_model

pytestmark = pytest.mark.ray
EPOCHS, TIMEOUT_S = 36, 8
TRAIN = {"epochs": EPOCHS, "num_workers": 2, "timeout_s": TIMEOUT_S}
TRAIN |= {"batch_size": 14, "checkpoint_every_steps": 1}  # two steps an epoch


@pytest.fixture(scope="module")
def uninterrupted(prepared, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The best weights of the same training that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    project = Project(folder)
    project.set({"train": TRAIN})
    spec = make_spec(load_params(folder / "params.yaml"), (4, 6, 8), prepared)
    return run_processes(2, {"whole": (spec, None)}, folder)["whole"][0][-1].best.weights


class Run:
    """The train stage as a process, its log as it grows, and its workers."""

    def __init__(self, project: Project, prepared: Path):
        self._project = project
        self.driver = project.start("train", "--prepared", str(prepared), *ARGUMENTS)

    @property
    def log(self) -> str:
        return self._project.log("train")

    def wait(self, done: Callable[[], object], timeout_s: float = 120) -> None:
        self._project.wait_until(self.driver, "train", lambda _: done(), timeout_s)

    def epoch(self) -> int:
        """The last epoch that was printed."""
        return max((int(one) for one in re.findall(rf"epoch (\d+)/{EPOCHS}", self.log)), default=0)

    def wait_for_more(self, epochs: int = 2) -> None:
        """Until so many epochs were done from now on."""
        there = self.epoch()
        self.wait(lambda: self.epoch() >= there + epochs)

    def workers(self) -> list[int]:
        """Pids of the processes that train, that of the first one, which listens for one thing more, first."""
        found = [
            process
            for process in psutil.Process(self.driver.pid).children(recursive=True)
            if "RayTrainWorker" in " ".join(process.cmdline())
        ]
        assert len(found) == 2, found

        def listens(process: psutil.Process) -> int:
            return sum(one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp"))

        return [process.pid for process in sorted(found, key=listens, reverse=True)]

    def wait_for_restart(self, times: int) -> None:
        self.wait(lambda: self.log.count("resuming after epoch") >= times, TIMEOUT_S + 90)

    def close(self) -> None:
        if self.driver.poll() is None:
            processes = psutil.Process(self.driver.pid).children(recursive=True)
            for process in processes:
                process.kill()
            os.kill(self.driver.pid, signal.SIGKILL)
            self.driver.wait()


@pytest.mark.parametrize(
    ("killed", "stopped", "ended"),
    [
        # The process that stands still keeps the store which the others ask; Ctrl-C reaches Ray's processes, too.
        pytest.param([slice(1, 2)], [0], [signal.SIGINT], id="one of each kind"),
        pytest.param(
            [slice(1, 2), slice(None)],
            [1, 0],
            [signal.SIGTERM, signal.SIGINT, signal.SIGKILL],
            id="all",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_training_survives_all_that_happens_to_its_processes_and_ends_with_the_same_bits(
    project, prepared, uninterrupted, killed, stopped, ended
):
    (project.folder / "architecture.yaml").write_text("widths: [4, 6, 8]\n")
    allowed = len(killed) + len(stopped)
    project.set({"train": TRAIN | {"max_failures": allowed}})
    project.environment = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}  # each report waits for one
    run = Run(project, prepared)
    try:
        restarts = itertools.count(1)

        # SIGKILL of workers.
        for whom in killed:
            run.wait_for_more()
            assert_locked(run.driver.pid)
            for pid in run.workers()[whom]:
                os.kill(pid, signal.SIGKILL)
            run.wait_for_restart(next(restarts))
        assert re.search(r"process \d is gone; the workers are replaced", run.log)

        # SIGSTOP of a worker: the others name it.
        for rank in stopped:
            run.wait_for_more()
            silent = psutil.Process(run.workers()[rank])
            silent.suspend()
            named = rf"process \d of 2 \(pid {silent.pid} on .*\) does not answer; the workers are replaced"
            run.wait(lambda named=named: re.search(named, run.log), TIMEOUT_S + 60)
            run.wait_for_restart(next(restarts))
            assert not silent.is_running()

        # SIGKILL once more than params allow.
        run.wait_for_more()
        os.kill(run.workers()[1], signal.SIGKILL)
        assert run.driver.wait(120) == 2, run.log
        said = rf"error: train-\w+: the workers ended again after {allowed} replacement\(s\), the limit of train\.max_f"
        assert re.search(said, run.log)
        assert run.log.count("resuming after epoch") == allowed

        # Signals to the driver: to it alone, or, as a terminal sends Ctrl-C, to the whole group.
        for number in ended:
            before = run.epoch()
            run = Run(project, prepared)
            run.wait(lambda before=before, run=run: run.epoch() >= before + 2)
            assert f"epoch {before - 1}/" not in run.log
            (os.killpg if number == signal.SIGINT else os.kill)(run.driver.pid, number)
            assert run.driver.wait(60) == (-number if number == signal.SIGKILL else 128 + number), run.log
            assert ("stopping after a checkpoint" in run.log) == (number != signal.SIGKILL)
            assert f"epoch {EPOCHS}/{EPOCHS}" not in run.log
            assert not (project.folder / "models").exists()

        run = Run(project, prepared)
        assert run.driver.wait(300) == 0, run.log
        assert "resuming after epoch" in run.log
        assert f"epoch {EPOCHS}/{EPOCHS}" in run.log
    finally:
        run.close()
    weights = load_model(project.folder / "models/train").network.state_dict()
    assert weights.keys() == uninterrupted.keys()
    for name, value in weights.items():
        assert torch.equal(value, uninterrupted[name]), name
