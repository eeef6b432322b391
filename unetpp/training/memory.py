"""Out-of-memory errors: how to recognise them, and how much memory was used."""

import resource
import sys

import torch

MIB = 2**20
# Messages for which torch has no exception type: from its CPU allocator, and from oneDNN.
SIGNS = ("can't allocate memory", "not enough memory", "could not create a memory object", "out of memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or this machine is out of memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def peak_memory_mib(device: torch.device) -> float:
    """The peak memory use of this process so far, in MiB: of the GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB elsewhere


def free_memory(device: torch.device) -> None:
    """Release the memory that torch caches."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
