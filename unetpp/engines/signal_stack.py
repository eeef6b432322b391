"""Preserve the alternative signal stack of a thread."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ON_STACK = 1  # a flag that the system reports but does not accept


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Restore this thread's alternative signal stack after the block.

    OpenVINO 2026.4 sets one when it compiles a model, and later frees its memory. The next signal that is handled on it
    kills the process with SIGSEGV; the exit of a child process is enough, once torch's loader has set its handler.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        before.flags &= ~ON_STACK
        libc.sigaltstack(ctypes.byref(before), None)
