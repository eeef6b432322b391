"""The costs of each depth on this machine: pruned and run as in deployment, with each number measured on its own."""

import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pipelines import detail
from pipelines.console.machine_load import others_share
from pipelines.console.progress import watched
from pipelines.core.delivery_sections import Evaluate
from pipelines.core.files import scratch
from pipelines.evaluation.cautions import BUSY
from pipelines.evaluation.cold_start import measure_cold_start
from pipelines.evaluation.predictor import MEAN
from unetpp.engines.engine import ENGINES, Engine
from unetpp.engines.family import Family, open_engine
from unetpp.images.frame import Size, say_size
from unetpp.models.model_file import Trained
from unetpp.network import profiling
from unetpp.network.pruning import prune
from unetpp.threads import num_cores

# Maximum seconds of each measurement, for slow or busy machines; the report says what was left out.
LATENCY_S, THROUGHPUT_S, COLD_START_S = 120.0, 60.0, 60.0
ENDED = {
    "rounds": "evaluate.latency_rounds was reached",
    "precise": f"every median was known to {profiling.PRECISE:.0%}",
    "time": f"the limit of {LATENCY_S:.0f} s was reached",
}


def of_tensor(engine: Engine) -> Callable[[Tensor], np.ndarray]:
    """An engine as a function of a tensor, as `unetpp.network.profiling` times it."""
    return lambda images: engine(images.numpy())


def memory_of(engine: Engine, example: Tensor, device: torch.device) -> float | None:
    """Peak memory of a pass in MiB; None for a runtime that does not report it."""
    if ENGINES[engine.name].runtime != "torch":
        return None
    return round(profiling.measure_peak_memory_mib(cast(Any, of_tensor(engine)), example, device), 3)


def open_depths(trained: Trained, engine: str, device: torch.device, exports: Path | None = None) -> dict[str, Engine]:
    """The engine of each depth by name, and of the mean of heads, which always runs in torch.

    Raises:
        UserError: the engine is not installed, or a depth has no export for it.
    """
    family = Family(trained.about, trained, exports)
    how: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads()}
    found = {f"L{depth}": open_engine(family, depth, engine, **how) for depth in trained.depths}
    if len(trained.depths) > 1:
        found[MEAN] = open_engine(family, name="torch", heads="mean", **how)
    return found


def measure_cost(
    trained: Trained,
    size: Size,
    rounds: int,
    max_batch: int,
    device: torch.device,
    engine: str = "torch",
    exports: Path | None = None,
) -> tuple[dict[str, dict[str, float | None]], dict[str, str | int | float]]:
    """Parameters, MACs, latency, throughput, memory, file size and cold start of each depth; how they were measured.

    "mean" is the whole network with all heads. A pass is from an image in [0, 1] to probabilities.
    """
    where = f"costs on {device.type}"
    opened = open_depths(trained, engine, device, exports)
    timed = cast(Any, {name: of_tensor(each) for name, each in opened.items()})
    kept: dict[str, Trained] = {
        f"L{depth}": replace(trained, network=prune(trained.network, depth)) for depth in trained.depths
    }
    if MEAN in opened:
        kept[MEAN] = trained
    example = torch.rand(1, trained.network.in_channels, *size)
    with scratch() as folder:
        files = {name: folder / f"{name}.safetensors" for name in kept}
        for name, each in kept.items():
            each.save(files[name])
        sizes = {name: path.stat().st_size / profiling.MIB for name, path in files.items()}
        cold_start = measure_cold_start(files, {MEAN}, size, device.type, COLD_START_S, engine, exports)

    latency = profiling.measure_latency(
        timed, example, rounds, watch=partial(watched, what=f"{where}, rounds of latency"), max_s=LATENCY_S
    )
    throughput = profiling.find_best_batch(
        timed, example, max_batch, watch=partial(watched, what=f"{where}, rounds of throughput"), max_s=THROUGHPUT_S
    )
    costs = {
        name: {
            "parameters": profiling.count_parameters(each.network),
            "macs": profiling.count_macs(
                each.ensemble() if name == MEAN else each.segmenter(), example.to(each.device)
            ),
            "latency_ms": round(latency[name].median_ms, 3),
            "latency_p95_ms": _rounded(latency[name].p95_ms),
            "latency_p99_ms": _rounded(latency[name].p99_ms),
            "latency_spread": round(latency[name].spread, 3),
            "images_per_s": round(throughput[name].images_per_s, 2),
            "best_batch": throughput[name].batch,
            "peak_memory_mib": memory_of(opened[name], example, device),
            "cold_start_ms": round(cold_start[name], 1),
            "size_mib": round(sizes[name], 3),
        }
        for name, each in watched(kept.items(), f"{where}, memory of depths")
    }
    one = next(iter(latency.values()))
    reading = {
        "size_px": size[0] if size[0] == size[1] else say_size(size),
        "latency_rounds": one.rounds,
        "latency_ended": ENDED[one.ended],
        "latency_half_width": round(max(each.half_width for each in latency.values()), 4),
        "throughput_batch": next(iter(throughput.values())).largest,
        "spread": round(float(np.median([each.spread for each in latency.values()])), 3),
    }
    return costs, reading


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 3)


def describe_machine(device: torch.device, engine: str = "torch") -> dict[str, str | int]:
    """The machine and the settings with which costs were measured."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor,
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "engine": engine,
        "precision": ENGINES[engine].precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def measure_devices(
    trained: Trained, settings: Evaluate, size: Size, main: torch.device, exports: Path | None = None
) -> list[dict]:
    """The costs on each available device on which the engine runs, the main one first."""
    present = [main.type] + [one for one in ("cuda", "cpu") if one != main.type and _is_present(one)]
    if settings.engine.startswith("openvino"):
        present = ["cpu"]
    devices = []
    share, threads = others_share(), torch.get_num_threads()
    told = f"other work uses {share:.0%} of this machine's processors"
    detail(f"evaluate: latency with {threads} threads, at most {LATENCY_S:.0f} s per device; {told}")
    if share > BUSY:
        print(f"evaluate: {told}: latency and throughput will be worse than on an idle machine", flush=True)
    for kind in present:
        device = torch.device(kind)
        rounds, batch, engine = settings.latency_rounds, settings.throughput_batch, settings.engine
        costs, reading = measure_cost(trained, size, rounds, batch, device, engine, exports)
        machine = describe_machine(device, engine) | reading | {"others_share": round(share, 2)}
        devices.append({"device": kind, "main": kind == present[0], "machine": machine, "depths": costs})
    return devices


def _is_present(kind: str) -> bool:
    return kind == "cpu" or torch.cuda.is_available()
