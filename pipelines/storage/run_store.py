"""Where a training run keeps its checkpoints: a folder, or a prefix in an S3-compatible store; both work alike.

A checkpoint is two files, and its manifest is written last: a checkpoint without one is skipped. Through small files
next to the checkpoints the stage communicates with its processes, on any machine.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.params import Params
from pipelines.core.private import make_private
from pipelines.core.sections.ingest import S3
from pipelines.storage.places import Place, open_place
from unetpp.errors import UserError
from unetpp.training.checkpoint import MANIFEST, STATE, DamagedCheckpointError, from_bytes, name_of, to_bytes

STOP = "stop"  # a file next to the checkpoints: asks the processes to stop
BEGUN = "begun"  # another: it shows them that they see the same storage as the stage
KEEP = 2  # checkpoints: one to fall back on if the newest is damaged


@dataclass(frozen=True)
class RunStore:
    """One run's checkpoints and small files; it travels to other processes."""

    place: Place

    @property
    def name(self) -> str:
        """Its address."""
        return self.place.location

    def newest(self) -> tuple[dict, list[str]]:
        """The state of the latest intact checkpoint.

        Returns:
            the state, empty if there is none; and a line for each damaged one.
        """
        sealed, torn = self._checkpoints()
        passed_over = [f"{self.place.name(checkpoint)}: torn checkpoint (no manifest)" for checkpoint in torn]
        for checkpoint in reversed(sealed):
            manifest, content = self.read(f"{checkpoint}/{MANIFEST}"), self.read(f"{checkpoint}/{STATE}")
            try:
                return from_bytes(content, manifest, self.place.name(checkpoint)), passed_over
            except DamagedCheckpointError as error:
                passed_over.append(str(error))
        return {}, passed_over

    def add(self, state: dict) -> None:
        """Save a state as the newest checkpoint, and keep the previous one.

        Raises:
            UserError: it cannot be written; earlier checkpoints are unchanged.
        """
        target, (sealed, _) = name_of(state), self._checkpoints()
        content, manifest = to_bytes(state)
        self.write(f"{target}/{STATE}", content)
        self.write(f"{target}/{MANIFEST}", manifest)
        # Later ones are damaged: this state comes from an earlier one.
        older = [name for name in sealed if name < target]
        kept = {f"{name}/{file}" for name in (target, *older[1 - KEEP :]) for file in (STATE, MANIFEST)}
        # Also what killed writers left behind. Manifests first, so that a partly deleted checkpoint counts as torn.
        gone = {name for name in self.place.list() if name.lstrip(".").startswith("checkpoint_")} - kept
        for name in sorted(gone, key=lambda name: not name.endswith(MANIFEST)):
            self.place.delete(name)

    def _checkpoints(self) -> tuple[list[str], list[str]]:
        """The names of those with a manifest, and of those without; the latest last."""
        files = {name for name in self.place.list() if name.startswith("checkpoint_")}
        names = sorted({name.partition("/")[0] for name in files})
        sealed = [name for name in names if f"{name}/{MANIFEST}" in files]
        return sealed, [name for name in names if name not in sealed]

    def read(self, file: str) -> bytes | None:
        """A small file; None if it does not exist."""
        return self.place.read(file)

    def write(self, file: str, content: bytes | memoryview) -> None:
        self.place.write(file, content)


def runs_at(params: Params, here: Path) -> str:
    """Where runs are: in `cluster.storage` if it is set, else in the folder `here`, which only its owner can enter."""
    storage = params.cluster.storage
    return f"{storage.rstrip('/')}/runs" if storage else str(make_private(here.absolute()))


def open_store(location: str, s3: S3) -> RunStore:
    """The run at a path or at s3://bucket/prefix."""
    return RunStore(open_place(location, s3))


def begin(run: RunStore) -> None:
    """Prepare a run for processes that may run on other machines: an old request to stop is removed.

    Raises:
        UserError: it cannot be written.
    """
    run.place.delete(STOP)
    run.write(BEGUN, b"")


def check_shared(run: RunStore) -> None:
    """Refuse to train if this process does not see the stage's storage: after a fault it would start from scratch.

    Raises:
        UserError: names the storage, and what to do.
    """
    if run.read(BEGUN) is None:
        raise UserError(
            f"{run.name}: this machine does not see what the stage wrote there; expected storage that all machines "
            "share: set cluster.storage to an absolute path on shared storage, or to s3://bucket/prefix"
        )


class StopFile:
    """Whether a run is asked to stop, by a file next to its checkpoints. A bucket is polled every few seconds.

    A bucket that does not answer stops nothing: the fault shows at the next checkpoint.
    """

    def __init__(self, run: RunStore):
        self._run, self._found, self._asked = run, False, float("-inf")

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._found and now - self._asked >= self._run.place.ask_every_s:
            self._asked = now
            with suppress(UserError):
                self._found = self._run.read(STOP) is not None
        return self._found
