"""What this machine computes with, known without any runtime: the processor's name and instructions, a GPU."""

import platform
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# By precision, the flags of /proc/cpuinfo of which one says that the processor computes in it, and not torch in fp32.
COMPUTES = {"bf16": {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16"}}


@cache
def processor() -> str:
    """Its name, as the system says it."""
    return _lines().get("model name") or platform.processor() or platform.machine()


@cache
def computes_in(precision: str) -> bool:
    """Whether the processor has arithmetic of a precision; where the system does not say so, it has none."""
    lines = _lines()
    flags = set((lines.get("flags") or lines.get("Features") or "").split())
    return precision not in COMPUTES or not COMPUTES[precision].isdisjoint(flags)


@cache
def has_gpu() -> bool:
    """Whether there is a GPU by NVIDIA, as its driver says without being loaded."""
    places = ("/proc/driver/nvidia/gpus", "/usr/lib/wsl/lib/libcuda.so.1", r"C:\Windows\System32\nvcuda.dll")
    return any(Path(place).exists() for place in places)


def _lines() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; nothing on other systems."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
