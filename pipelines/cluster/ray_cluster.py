"""The Ray cluster that a stage runs on: one on this machine for as long as the stage lasts, or the one that
RAY_ADDRESS names (inside `ray job submit` Ray sets it). The same code runs on both."""

import os
import secrets
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipelines import VERBOSE, is_verbose
from pipelines.core.temporary_folders import scratch
from unetpp.errors import UserError
from unetpp.offline import TELEMETRY_OFF
from unetpp.threads import WAIT

# Switches for what Ray prints besides the training run's own lines.
QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise each line of a worker appears twice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default, set to avoid its warning
}
# Ray's own switch, set before it is imported, that makes all its processes listen only on 127.0.0.1. It is named for
# other systems and does the same on Linux: found in Ray 2.60, and verified by a test.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
if sys.platform.startswith("linux"):  # between the workers
    LOOPBACK |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
CONNECT_S = 30
NO_ANSWER = "does not answer"
START_IT = "start that cluster, or unset RAY_ADDRESS to use this machine"
# The longest folder for which Ray's sockets have paths of at most 103 bytes, the limit on macOS (Linux 107).
LONGEST_FOLDER = 34


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to the cluster, or start one on this machine; disconnect or stop it afterwards.

    Raises:
        UserError: the cluster does not answer.
    """
    os.environ.update(QUIET)
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        options = _connected(address) if address else _of_this_machine(stack)
        import ray

        options["runtime_env"]["env_vars"] = TELEMETRY_OFF | QUIET | {WAIT: os.environ[WAIT]}
        options["runtime_env"]["env_vars"] |= {VERBOSE: "1"} if is_verbose() else {}
        # Without a dashboard a helper of Ray Train warns every second that it cannot reach one.
        options |= {"logging_level": "WARNING", "logging_config": ray.LoggingConfig(log_level="ERROR")}
        try:
            try:
                ray.init(**options)
            except (ConnectionError, ValueError) as error:
                if not address:
                    raise
                said = (str(error).splitlines() or [""])[0]
                raise UserError(f"RAY_ADDRESS: {address} {NO_ANSWER} ({said}); {START_IT}") from None
            yield
        finally:
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it takes a second, and must not be interrupted
            ray.shutdown()
            signal.signal(signal.SIGINT, before)


def _connected(address: str) -> dict[str, Any]:
    # Set it in any case: by default, Ray looks for a token in the user's home, and may write one there.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # For the cluster's dashboard, /api/train/v2/runs/v1; a cluster of only this machine has none.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    if address != "auto" and not reaches(address, CONNECT_S):
        raise UserError(f"RAY_ADDRESS: {address} {NO_ANSWER} in {CONNECT_S} s; {START_IT}")
    return {"address": address, "runtime_env": {}}


def _of_this_machine(stack: ExitStack) -> dict[str, Any]:
    """A cluster that nobody else can reach: on loopback, and with a token that only its own processes have."""
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    os.environ |= LOOPBACK | {"RAY_AUTH_MODE": "token"}
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # for a second cluster, Ray uses the first one's
    # One process less to start: this machine's node is never preempted.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Nor a prestarted process per core: they would lack the environment of our workers.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Ray passes the interpreter's path to a shell unquoted, and a folder may have a space in its name.
    runtime_env = {"py_executable": shlex.quote(sys.executable), "worker_process_setup_hook": name_own_cluster}
    options = {"include_dashboard": False, "resources": {"trial_driver": 1000}}
    if len(os.fsencode(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())) > LONGEST_FOLDER:
        options["_temp_dir"] = str(stack.enter_context(scratch(Path("/tmp"))))
    return options | {"address": "local", "runtime_env": runtime_env}


def reaches(address: str, timeout_s: float) -> bool:
    """Whether a Ray cluster answers at host:port within that time; Ray itself would try for ten minutes."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel  # with TLS if Ray is configured to use it

    channel: Any = init_grpc_channel(address.rpartition("//")[2])
    try:
        grpc.channel_ready_future(channel).result(timeout=timeout_s)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True


def is_open(address: str) -> bool:
    """Whether the Ray cluster at host:port answers without a token: anyone who reaches it can run code there."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    request = getattr(gcs_service_pb2, "GetAllNodeInfoRequest")()  # noqa: B009 - generated: unknown to pyright
    with grpc.insecure_channel(address.rpartition("//")[2]) as channel:
        try:
            gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(request, timeout=5)
        except grpc.RpcError:
            return False
    return True


def name_own_cluster() -> None:
    """Set the address of this process's own local cluster; runs as each process starts.

    A helper of Ray Train asks any cluster that it finds on the machine whether the controller is alive. A cluster that
    somebody starts during a training run does not know the controller, and the helper removed the workers.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def check_fits(what: str, processes: int, cpus_per_worker: int, use_gpu: bool, advice: str) -> None:
    """Refuse a request that the connected cluster can never place; Ray itself would wait forever.

    Raises:
        UserError: with what was requested, what is available, and `advice`.
    """
    import ray

    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    if processes * cpus_per_worker > cpus:
        raise UserError(
            f"{what}: {processes} worker(s) of {cpus_per_worker} CPU need {processes * cpus_per_worker} cores, "
            f"and the cluster has {cpus}; {advice}"
        )
    if use_gpu and processes > gpus:
        raise UserError(f"{what}: {processes} worker(s) need a GPU each, and the cluster has {gpus}; {advice}")


def how_many_fit(cpus_per_worker: int, use_gpu: bool) -> int:
    """How many processes with so many cores, and a GPU each, the connected cluster can run at once."""
    import ray

    there = ray.cluster_resources()
    fit = int(there.get("CPU", 0)) // cpus_per_worker
    return min(fit, int(there.get("GPU", 0))) if use_gpu else fit
