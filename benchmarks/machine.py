"""The machine on which a page was measured, for the head of the page: processor, instruction sets, matrix peak, load.

A ratio holds for a kind of machine: a step that is 2.7 times as fast where a processor has AMX is 2.1 times as fast
where it only has AVX-512 bf16. So a claim of speed names its machine, and every page begins with `head`.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from unetpp.threads import num_cores

INSTRUCTIONS = {  # flags of /proc/cpuinfo on x86-64 and Arm
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
    "amx_fp16": "AMX fp16",
    "avx512_bf16": "AVX-512 bf16",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX VNNI",
    "avx2": "AVX2",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "Arm bf16",
    "i8mm": "Arm int8",
}
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8"}
CPU = torch.device("cpu")


def find_processor() -> tuple[str, list[str]]:
    """Its name, and which of its instruction sets matter to matrix products."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set(found.get("flags", found.get("Features", "")).split())
    named = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    name = found.get("model name") or platform.processor() or platform.machine()
    return name, named or [torch.backends.cpu.get_cpu_capability()]


def timed(action: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of one call: of the clock; on a processor, where torch computes in one thread, of that processor.

    Others may use the cores, and what one thread computes in a second of its own hardly depends on them.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = clock()
    action()
    wait()
    return clock() - began


def matrix_peak(dtype: torch.dtype, device: torch.device = CPU, side: int | None = None) -> float:
    """Floating-point operations a second of the fastest of some products of random square matrices.

    A GPU takes fp32 as its convolutions do by torch's default: in TF32, where it has that.
    """
    side = side or (8192 if device.type == "cuda" else 2048)
    one = torch.randn(side, side, device=device).to(dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        return 2 * side**3 / min(timed(lambda: one @ one, device) for _ in range(6))
    finally:
        torch.set_float32_matmul_precision(before)


def memory_bandwidth(device: torch.device = CPU, mib: int | None = None) -> float:
    """Bytes a second, read and written, of the fastest of some copies that no cache holds."""
    mib = mib or (1024 if device.type == "cuda" else 256)
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)
    return 2 * mib * 2**20 / min(timed(lambda: target.copy_(source), device) for _ in range(6))


def say_rate(per_s: float, unit: str) -> str:
    return f"{per_s / 1e12:.3g} T{unit}/s" if per_s >= 1e12 else f"{per_s / 1e9:.3g} G{unit}/s"


def describe(device: torch.device = CPU, peaks: Iterable[torch.dtype] = ()) -> str:
    """One sentence: processor, instruction sets, threads, load; and one on the matrix peak, measured in these types."""
    load = os.getloadavg()[0]
    name, instructions = find_processor()
    where = f"{name} ({', '.join(instructions)}), {num_cores()} cores"
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        where = f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB, CUDA {torch.version.cuda}, beside {where}"
    else:
        threads = torch.get_num_threads()
        where += ", 1 thread, whose own seconds count" if threads == 1 else f", {threads} threads"
    found = [f"{SHORT[dtype]} {say_rate(matrix_peak(dtype, device), 'FLOP')}" for dtype in peaks]
    told = f" Measured matrix peak: {', '.join(found)}." if found else ""
    version = torch.__version__.split("+")[0]
    return f"Read on {where}, torch {version}, load average {load:.1f} before the start (0 is an idle machine).{told}"


def head(title: str, command: str, machine: str) -> list[str]:
    """The first lines of a page: what it is, how it was made, and where."""
    return [f"# {title}", "", f"`{command}`. {machine}", ""]
