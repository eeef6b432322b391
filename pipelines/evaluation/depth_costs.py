"""What each depth costs on this machine: pruned as for deployment, and each number measured by itself."""

import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipelines.console.machine_load import others_share
from pipelines.console.progress import watched
from pipelines.core.delivery_sections import Evaluate
from pipelines.core.files import scratch
from pipelines.evaluation.cold_start import measure_cold_start
from pipelines.evaluation.predictor import MEAN
from unetpp.images.frame import Size, say_size
from unetpp.inference.model_file import Trained
from unetpp.network import profiling
from unetpp.network.pruning import prune


def measure_cost(
    trained: Trained, size: Size, rounds: int, max_batch: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Parameters, MACs, latency, throughput, memory, file size and cold start of each depth.

    "mean" is the whole network with all heads. A pass is from an image in [0, 1] to probabilities, in fp32.
    """
    kept: dict[str, Trained] = {
        f"L{depth}": replace(trained, network=prune(trained.network, depth)) for depth in trained.depths
    }
    modules: dict[str, nn.Module] = {name: each.segmenter() for name, each in kept.items()}
    if len(trained.depths) > 1:
        kept[MEAN] = trained
        modules[MEAN] = trained.ensemble()
    example = torch.rand(1, trained.network.in_channels, *size, device=device)
    for module in modules.values():
        module.to(device)
    with scratch() as folder:
        files = {name: folder / f"{name}.safetensors" for name in kept}
        for name, each in kept.items():
            each.save(files[name])
        sizes = {name: path.stat().st_size / profiling.MIB for name, path in files.items()}
        cold_start = measure_cold_start(files, {MEAN}, size, device.type)
    where = f"costs on {device.type}, rounds"
    latency = profiling.measure_latency(modules, example, rounds, watch=lambda each: watched(each, where))
    throughput = profiling.find_best_batch(modules, example, max_batch)
    return {
        name: {
            "parameters": profiling.count_parameters(module),
            "macs": profiling.count_macs(module, example),
            "latency_ms": round(latency[name].median_ms, 3),
            "latency_p95_ms": round(latency[name].p95_ms, 3),
            "latency_p99_ms": round(latency[name].p99_ms, 3),
            "latency_spread": round(latency[name].spread, 3),
            "images_per_s": round(throughput[name].images_per_s, 2),
            "best_batch": throughput[name].batch,
            "peak_memory_mib": round(profiling.measure_peak_memory_mib(module, example), 3),
            "cold_start_ms": round(cold_start[name], 1),
            "size_mib": round(sizes[name], 3),
        }
        for name, module in modules.items()
    }


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """What the costs were read on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "precision": "fp32",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def measure_devices(trained: Trained, settings: Evaluate, size: Size, main: torch.device) -> list[dict]:
    """The costs on each device present, the main one first."""
    present = [main.type] + [one for one in ("cuda", "cpu") if one != main.type and _is_present(one)]
    devices = []
    share = others_share()
    for kind in present:
        device = torch.device(kind)
        costs = measure_cost(trained, size, settings.latency_rounds, settings.throughput_batch, device)
        spread = float(np.median([row["latency_spread"] for row in costs.values()]))
        reading = {
            "size_px": size[0] if size[0] == size[1] else say_size(size),
            "latency_rounds": settings.latency_rounds,
            "throughput_batch": settings.throughput_batch,
            "spread": round(spread, 3),
            "others_share": round(share, 2),
        }
        machine = describe_machine(device) | reading
        devices.append({"device": kind, "main": kind == main.type, "machine": machine, "depths": costs})
    return devices


def _is_present(kind: str) -> bool:
    return kind == "cpu" or torch.cuda.is_available()
