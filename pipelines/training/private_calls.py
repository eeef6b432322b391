"""What is asked of Ray and torch by names that they do not promise to keep: in this one file, for the versions that
pyproject.toml allows. Its test names them; after an upgrade see that the same is still answered.
"""

from typing import Any

import torch.distributed as dist


def threatened_ranks() -> list[int]:
    """In a worker of Ray Train, the processes whose machine Ray was told will be taken away.

    `ray.train.get_preemption_info()` is an exchange between all processes at each call; this is what it would send.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return info.preempted_ranks if info else []


def group_store() -> Any:
    """The store by which the processes of this group found one another; process 0 keeps it."""
    return dist.distributed_c10d._get_default_store()
