"""Where a training keeps its checkpoints: a folder, or a prefix in an S3-compatible store; both work alike.

A checkpoint is two files, and its manifest is written last: it is whole or it is passed over, wherever it lies. Small
files beside the checkpoints are how the stage and its processes, on whatever machines, tell each other something.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pipelines.core.data_sections import S3
from pipelines.core.files import disk_errors, replacing
from pipelines.core.params import Params
from pipelines.storage.s3 import Store
from unetpp.errors import UserError
from unetpp.training.checkpoint import (
    MANIFEST,
    STATE,
    DamagedCheckpointError,
    add_checkpoint,
    from_bytes,
    name_of,
    newest_checkpoint,
    to_bytes,
)

STOP = "stop"  # a file beside the checkpoints: asks the processes to stop
BEGUN = "begun"  # another: by it they see that they look at the same place as the stage
KEEP = 2  # checkpoints: should the newest be damaged, there is another one
ASK_EVERY_S = 5  # a bucket costs a request, and does not change faster than a person


class RunStore(Protocol):
    """One run's checkpoints and small files; it travels to other processes. `name` is its address."""

    name: str

    def newest(self) -> tuple[dict, list[str]]:
        """As `unetpp.training.checkpoint.newest_checkpoint`."""
        ...

    def add(self, state: dict) -> None:
        """Keep a state as the newest checkpoint, and the one before it.

        Raises:
            UserError: it cannot be written; what stood before is as it was.
        """
        ...

    def read(self, file: str) -> bytes | None:
        """A small file; None where there is none."""
        ...

    def write(self, file: str, content: bytes) -> None: ...

    def remove(self, file: str) -> None: ...


class FolderRun:
    """A run in a folder, of this machine or one that all machines share."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = str(folder)

    def newest(self) -> tuple[dict, list[str]]:
        return newest_checkpoint(self.folder)

    def add(self, state: dict) -> None:
        with disk_errors(self.folder):
            add_checkpoint(self.folder, state, KEEP)

    def read(self, file: str) -> bytes | None:
        try:
            return (self.folder / file).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, file: str, content: bytes) -> None:
        with disk_errors(self.folder), replacing(self.folder / file) as partial:
            partial.write_bytes(content)

    def remove(self, file: str) -> None:
        (self.folder / file).unlink(missing_ok=True)


class BucketRun:
    """A run under a prefix in an S3-compatible store, reached as `ingest.s3` says."""

    def __init__(self, location: str, s3: S3):
        self.name, self._s3 = location, s3
        own = s3.model_copy(update={"anonymous": False, "requester_pays": False})
        self._store = Store(own, location, num_workers=8, setting="cluster.storage")

    def __reduce__(self):
        return BucketRun, (self.name, self._s3)  # a connection does not travel to other processes

    def newest(self) -> tuple[dict, list[str]]:
        sealed, torn = self._checkpoints()
        passed_over = [f"{self.name}/{checkpoint}: torn checkpoint (no manifest)" for checkpoint in torn]
        for checkpoint in reversed(sealed):
            manifest, content = self.read(f"{checkpoint}/{MANIFEST}"), self.read(f"{checkpoint}/{STATE}")
            try:
                return from_bytes(content, manifest, f"{self.name}/{checkpoint}"), passed_over
            except DamagedCheckpointError as error:
                passed_over.append(str(error))
        return {}, passed_over

    def add(self, state: dict) -> None:
        target, (sealed, torn) = name_of(state), self._checkpoints()
        content, manifest = to_bytes(state)
        self.write(f"{target}/{STATE}", content)
        self.write(f"{target}/{MANIFEST}", manifest)
        # Further ones are damaged: this state comes from an earlier one.
        older = [name for name in sealed if name < target]
        for name in sorted({*sealed, *torn} - {target, *older[max(0, len(older) - KEEP + 1) :]}):
            self.remove(f"{name}/{MANIFEST}")  # first, so that what is left of it is torn
            self.remove(f"{name}/{STATE}")

    def _checkpoints(self) -> tuple[list[str], list[str]]:
        """The names of those with a manifest, and of those without; each the furthest last."""
        keys = {found.key.removeprefix(self._store.prefix) for found in self._store.list()}
        names = sorted({key.partition("/")[0] for key in keys if key.startswith("checkpoint_")})
        sealed = [name for name in names if f"{name}/{MANIFEST}" in keys]
        return sealed, [name for name in names if name not in sealed]

    def read(self, file: str) -> bytes | None:
        found = self._store.find(self._store.prefix + file)
        if found is None:
            return None
        return b"".join(self._store.read(found, 0, found.size)[1])

    def write(self, file: str, content: bytes | memoryview) -> None:
        self._store.write(content, self._store.prefix + file)

    def remove(self, file: str) -> None:
        self._store.remove(self._store.prefix + file)


def runs_at(params: Params, here: Path) -> str:
    """Where runs are: in `cluster.storage` if it is set, else in the folder `here`."""
    storage = params.cluster.storage
    return f"{storage.rstrip('/')}/runs" if storage else str(here.absolute())


def open_store(location: str, s3: S3) -> RunStore:
    """The run at a path or at s3://bucket/prefix."""
    return BucketRun(location, s3) if location.startswith("s3://") else FolderRun(Path(location))


def begin(run: RunStore) -> None:
    """Make a place ready for processes that may run on other machines: none is asked to stop that begins now.

    Raises:
        UserError: it cannot be written.
    """
    try:
        run.remove(STOP)
        run.write(BEGUN, b"")
    except OSError as error:
        raise UserError(
            f"{run.name}: cannot be written ({error.strerror}); expected a folder that all machines share: correct "
            "cluster.storage"
        ) from None


def check_shared(run: RunStore) -> None:
    """Refuse to train where the run's place is another one than the stage's: after a fault it would begin anew.

    Raises:
        UserError: names the place, and what to do.
    """
    if run.read(BEGUN) is None:
        raise UserError(
            f"{run.name}: this machine does not see what the stage wrote there; expected a place that all machines "
            "share: set cluster.storage to an absolute path on shared storage, or to s3://bucket/prefix"
        )


class StopFile:
    """Whether a run is asked to stop, by a file beside its checkpoints. A bucket is asked every few seconds.

    One that does not answer asks nobody to stop: what cannot be read or written shows at the next checkpoint.
    """

    def __init__(self, run: RunStore):
        self._run, self._found, self._asked = run, False, float("-inf")
        self._every_s = 0 if isinstance(run, FolderRun) else ASK_EVERY_S

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._found and now - self._asked >= self._every_s:
            self._asked = now
            with suppress(UserError, OSError):
                self._found = self._run.read(STOP) is not None
        return self._found
