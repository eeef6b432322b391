"""A stage as a job on a remote Ray cluster: submitted, followed, stopped by Ctrl-C, its results fetched and checked.

`ray job submit` itself ends with 0 for a stopped job and for a lost connection: here a stage is
done only when its job succeeded and its results verify.
"""

import asyncio
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.cluster.job_package import fetch, outputs_of, pack
from pipelines.core.params import Params
from pipelines.core.temporary_folders import scratch
from pipelines.storage.node_cache import share
from pipelines.storage.places import Place, open_place
from unetpp.data.manifest import read_manifest
from unetpp.errors import UserError

RECONNECTS = 20
AGENT_S = 60  # a cluster that has just started has no job agent yet


def address_of(params: Params) -> str | None:
    """Where to send a stage: RAY_ADDRESS or `cluster.address`, if that is http(s); None runs it here.

    Inside a job Ray sets RAY_ADDRESS to the cluster's own, which is not an http address: there the stage runs.
    """
    address = os.environ.get("RAY_ADDRESS") or params.cluster.address or ""
    return address.rstrip("/") if urlsplit(address).scheme in ("http", "https") else None


def run_remotely(stage: str, params: Params, address: str, arguments: dict[str, Path]) -> None:
    """Run `python -m pipelines.STAGE` with these arguments as a job, and put its outputs where it would itself.

    A rerun command follows the job if it is still running, or takes the results of the job that has ended.

    Args:
        arguments: paths by the name of their option.

    Raises:
        UserError: no storage, no such cluster, the job did not succeed, or its results do not verify.
    """
    storage = _shared_storage(params, address, arguments["prepared"])
    with scratch() as folder:
        package = folder / "package"
        key = pack(package, stage, params, arguments)
        with _explained(address):
            client = _connect(address)
            job, known = find_job(client, key)
            if not known:
                _send(client, job, package, params.cluster.python, address)
            follow(client, job, address)
    fetch(storage, key, outputs_of(stage, arguments))


def _shared_storage(params: Params, where: str, prepared: Path) -> Place:
    """The storage that this machine and the cluster share, with the prepared data in it."""
    if params.cluster.storage is None:
        raise UserError(
            f"the stage runs on {where}, and cluster.storage is null: set it to s3://bucket/prefix or to an "
            "absolute path that this machine and the cluster share; data, checkpoints and results pass through it"
        )
    share(params, prepared, read_manifest(prepared))
    return open_place(params.cluster.storage, params.ingest.s3)


def send_archive(stage: str, params: Params, arguments: dict[str, Path], out: str, overwrite: bool = False) -> None:
    """Write a stage's working directory, as a zip that Ray fetches by itself, to a path or to s3://bucket/name.zip.

    For a cluster that this machine does not reach (infra/kuberay/rayjob.yaml); `fetch_results` brings the results.

    Raises:
        UserError: no storage, a target that cannot be written, or a file in the way.
    """
    parent, _, name = out.rpartition("/")
    place = open_place(parent or ".", params.ingest.s3)
    if place.size(name) is not None and not overwrite:
        raise UserError(f"{out}: already exists; choose another name, or use --overwrite")
    _shared_storage(params, out, arguments["prepared"])
    with scratch() as folder:
        # Ray strips the one top-level folder of an archive.
        pack(folder / "zip" / stage, stage, params, arguments)
        made = Path(shutil.make_archive(str(folder / stage), "zip", folder / "zip"))
        place.write(name, made)
    print(f"wrote {out}; its job is `{_entrypoint(params.cluster.python)}`")


def fetch_results(stage: str, params: Params, arguments: dict[str, Path]) -> None:
    """Fetch the results of a job that was submitted with the present params, code and inputs, to the stage's outputs.

    Raises:
        UserError: there are none, or they do not verify.
    """
    storage = _shared_storage(params, "a cluster", arguments["prepared"])
    with scratch() as folder:
        key = pack(folder / "package", stage, params, arguments)
    fetch(storage, key, outputs_of(stage, arguments))


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Raise a `UserError` with the address if a cluster does not answer, or refuses."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        text = str(error).strip()
        first = (text.splitlines() or [type(error).__name__])[0][:200]
        if isinstance(error, AuthenticationError):
            raise UserError(
                f"{address}: the cluster refuses this token ({first}); set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
                "to a file with the cluster's token"
            ) from None
        if isinstance(error, ConnectionError) or "onnect" in text:
            raise UserError(
                f"{address}: no Ray cluster answers ({first}); start it, or correct cluster.address or RAY_ADDRESS "
                "(the address of its dashboard, port 8265)"
            ) from None
        raise


def _connect(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard").setLevel("WARNING")  # it logs at each attempt that it has the package already
    # The client prefers RAY_ADDRESS to its argument. They are the same here, except for a slash.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    return JobSubmissionClient(address)


def find_job(client: Any, key: str) -> tuple[str, bool]:
    """The newest attempt with this key that is running or succeeded, or the name of the next one to send.

    Returns:
        the job's name, and whether the cluster knows it already.
    """
    attempts = {}
    for found in client.list_jobs():
        name = found.submission_id or ""
        if name.rpartition("-")[0] == key:
            attempts[int(name.rpartition("-")[2])] = found
    if attempts:
        newest = max(attempts)
        status = str(attempts[newest].status)
        if status not in ("FAILED", "STOPPED"):
            print(f"job {key}-{newest} is already {status.lower()}: following it", flush=True)
            return f"{key}-{newest}", True
    return f"{key}-{max(attempts, default=0) + 1}", False


def _entrypoint(python: str) -> str:
    return f"{shlex.quote(python)} -m pipelines.cluster.job_package"


def _send(client: Any, job: str, package: Path, python: str, address: str) -> None:
    give_up = time.monotonic() + AGENT_S
    for attempt in count():
        try:
            client.submit_job(
                entrypoint=_entrypoint(python),
                submission_id=job,
                runtime_env={
                    "working_dir": str(package),
                    "py_executable": shlex.quote(python),  # it is passed to a shell unquoted
                    # Only this: Ray refuses a name that the stage itself passes to its workers (ray_cluster.py).
                    "env_vars": {"PYTHONUNBUFFERED": "1"},
                },
                metadata={"project": "unetpp"},
            )
            break
        except RuntimeError as error:
            if "try again later" not in str(error):
                raise
            if time.monotonic() > give_up:
                raise UserError(
                    f"{address}: the cluster accepted no job in {AGENT_S} s, because the job agent does not run on its "
                    "head (often another Ray on that machine has its port 52365; dashboard_agent.log in "
                    "/tmp/ray/session_latest/logs there says why); start the head with "
                    "--dashboard-agent-listen-port=<a free port>"
                ) from None
            if attempt == 0:
                print(f"{address}: waiting for the cluster's job agent", flush=True)
            time.sleep(1)
    print(f"job {job} was submitted", flush=True)


def follow(client: Any, job: str, address: str) -> None:
    """Print a job's log until it ends; Ctrl-C stops the job.

    Raises:
        UserError: it did not succeed, or the cluster was lost.
    """
    shown, lost = [0], 0
    try:
        while True:
            try:
                asyncio.run(_tail(client, job, shown))
                status = client.get_job_status(job)
                lost = 0
            except (RuntimeError, OSError) as error:
                status = None
                lost += 1
                if lost > RECONNECTS:
                    raise UserError(
                        f"{address}: lost while job {job} ran ({error}); the job may still be running there: rerun the "
                        "command to follow it"
                    ) from None
            if status is not None and status.is_terminal():
                break
            time.sleep(min(5, 1 + lost))
    except KeyboardInterrupt:
        print(f"\nstopping job {job}", file=sys.stderr, flush=True)
        client.stop_job(job)
        for _ in range(60):
            if client.get_job_status(job).is_terminal():
                break
            time.sleep(0.5)
        raise
    if str(status) != "SUCCEEDED":
        reason = (client.get_job_info(job).message or "").strip().partition(", last available logs")[0]
        raise UserError(
            f"job {job} ended as {status} on {address} ({reason or 'no reason given'}); its log is above. Rerun the "
            "command: it submits the job again, which resumes from its last checkpoint"
        )


async def _tail(client: Any, job: str, shown: list[int]) -> None:
    """Print the part of a job's log beyond the characters already shown, and count them: the log may break off."""
    seen = 0
    async for text in client.tail_job_logs(job):
        seen += len(text)
        if seen > shown[0]:
            print(text[-(seen - shown[0]) :], end="", flush=True)
            shown[0] = seen
