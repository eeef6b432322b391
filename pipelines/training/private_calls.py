"""All uses of private names of Ray and torch, for the versions that pyproject.toml allows.

Its test pins these versions; after an upgrade, check that each call still behaves the same.
"""

import importlib
import socket
from typing import Any

import torch.distributed as dist


def threatened_ranks() -> list[int]:
    """In a worker of Ray Train: the ranks whose machine, as Ray was told, will be preempted.

    `ray.train.get_preemption_info()` is an exchange between all processes at each call; this is what it would send.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return info.preempted_ranks if info else []


def group_store() -> Any:
    """The store through which the processes of this group found each other; process 0 keeps it."""
    return dist.distributed_c10d._get_default_store()


def torch_config(**settings: Any) -> Any:
    """Ray Train's TorchConfig, with a store that listens only on the address of process 0.

    torch's own listens on every address of the machine, without authentication.
    """
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group, backend_config):
            worker_group.execute(_listen_on_one_address)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self):
            return Backend

    return Config(**settings)


def _listen_on_one_address() -> None:
    rendezvous = importlib.import_module("torch.distributed.rendezvous")

    def store(host_name: str, port: int, world_size: int, is_master: bool, **settings: Any) -> Any:
        if is_master:
            family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
            settings["master_listen_fd"] = socket.create_server((host_name, port), family=family).detach()
        return dist.TCPStore(host_name, port, world_size, is_master, **settings)  # pyright: ignore[reportPrivateImportUsage]

    rendezvous.TCPStore = store  # pyright: ignore[reportAttributeAccessIssue]
