"""The hardware of this machine, without any runtime: name and instructions of the processor, and a GPU."""

import platform
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# By precision, flags of /proc/cpuinfo: any of them means native support, not emulation in fp32 by torch.
COMPUTES = {"bf16": {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16"}}


@cache
def processor() -> str:
    """The name of the processor, as reported by the system."""
    return _lines().get("model name") or platform.processor() or platform.machine()


@cache
def computes_in(precision: str) -> bool:
    """Whether the processor supports a precision natively; False if the system does not report it."""
    lines = _lines()
    flags = set((lines.get("flags") or lines.get("Features") or "").split())
    return precision not in COMPUTES or not COMPUTES[precision].isdisjoint(flags)


@cache
def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, found without loading its driver."""
    places = ("/proc/driver/nvidia/gpus", "/usr/lib/wsl/lib/libcuda.so.1", r"C:\Windows\System32\nvcuda.dll")
    return any(Path(place).exists() for place in places)


def _lines() -> dict[str, str]:
    """The entries of the first processor in /proc/cpuinfo; empty on other systems."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
