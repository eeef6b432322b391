"""Memory that ran out: how it is known, and what was used."""

import resource
import sys

import torch

MIB = 2**20
# What a torch without a type for it says: its allocator on processors, and oneDNN's.
SIGNS = ("can't allocate memory", "not enough memory", "could not create a memory object", "out of memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device or of this machine is not enough."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def peak_memory_mib(device: torch.device) -> float:
    """The most that this process has used so far: of the GPU's memory, or of this machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)  # bytes there, KiB here


def free_memory(device: torch.device) -> None:
    """Give back what torch keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
