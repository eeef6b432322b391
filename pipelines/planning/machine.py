"""Facts about this machine."""

import os

import psutil
import torch

from pipelines.planning.facts import Machine


def find_machine(use_gpu: bool | None = None) -> Machine:
    """This machine's cores, memory and GPUs.

    Args:
        use_gpu: False ignores GPUs; None uses those present.
    """
    memory_mib = psutil.virtual_memory().total / 2**20
    gpus = torch.cuda.device_count() if use_gpu is not False and torch.cuda.is_available() else 0
    held = torch.cuda.get_device_properties(0).total_memory / 2**20 if gpus else 0.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, memory_mib, gpus, held)
