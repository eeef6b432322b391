"""The Ray cluster that a stage runs on: one on this machine for as long as the stage lasts, or the one that
RAY_ADDRESS names (inside `ray job submit` Ray sets it). The same code runs on both."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unetpp.errors import UserError
from unetpp.offline import TELEMETRY_OFF

# What Ray prints beside the training's own lines.
QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else each line of a worker appears twice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default, asked for so that it need not warn
}


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to the cluster, or start one on this machine; leave or end it afterwards."""
    # Set one way or the other: left alone, a local Ray turns token mode on and writes a token into the user's
    # home. A local cluster listens on loopback only.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.update(QUIET)
    import ray

    common: dict[str, Any] = {
        "runtime_env": {"env_vars": TELEMETRY_OFF | QUIET},
        "logging_level": "WARNING",
        # Without a dashboard a helper of Ray Train warns every second that it cannot ask one.
        "logging_config": ray.LoggingConfig(log_level="ERROR"),
    }
    address = os.environ.get("RAY_ADDRESS")
    if address:
        # For the cluster's dashboard, /api/train/v2/runs/v1; a cluster of this machine alone has none.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
        ray.init(address=address, **common)
    else:
        # Ray passes the interpreter's path to a shell as it is, and a folder may have a space in its name.
        common["runtime_env"]["py_executable"] = shlex.quote(sys.executable)
        common["runtime_env"]["worker_process_setup_hook"] = name_own_cluster
        # One process less to start: nobody preempts a node of this machine.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Nor a process for each core ahead of time: none of them has the environment that ours are started with.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            resources={"trial_driver": 1000},
            **common,
        )
    try:
        yield
    finally:
        ray.shutdown()


def name_own_cluster() -> None:
    """Tell this process of a local cluster which one it belongs to; runs as each of them starts.

    A helper of Ray Train asks whichever cluster it finds on the machine whether the controller lives. One that somebody
    starts in the middle of a training knows no such controller, and the helper removed the workers.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def check_fits(what: str, processes: int, cpus_per_worker: int, use_gpu: bool, advice: str) -> None:
    """Refuse a request that the connected cluster can never place; Ray itself would wait for ever.

    Raises:
        UserError: with what was asked for, what there is, and `advice`.
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
    """Processes of so many cores, and of a GPU each, that the connected cluster holds beside each other."""
    import ray

    there = ray.cluster_resources()
    fit = int(there.get("CPU", 0)) // cpus_per_worker
    return min(fit, int(there.get("GPU", 0))) if use_gpu else fit
