"""Two gloo processes of one thread against one of two threads, at the same joint batch."""

import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from unetpp import NestedUNet
from unetpp.training.loop import choose_precision, make_loss, make_optimizer

CPU = torch.device("cpu")


def steps_of(_rank: int, world: int, threads: int, batch: int, widths: list[int], ddp: bool, rounds: int) -> float:
    """Seconds of a step, the median; the batch is this process's own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network: nn.Module = NestedUNet(widths).to(memory_format=torch.channels_last)  # pyright: ignore
    loss, dtype = make_loss("ce_dice", "mean", range(1, len(widths))), choose_precision("auto", CPU)
    optimizer = make_optimizer(network, "adamw", 1e-3, 0.9, 0.01)
    if ddp:
        network = nn.parallel.DistributedDataParallel(
            network, gradient_as_bucket_view=True, forward_sync_buffers=False, static_graph=False
        )
    image = torch.randn(batch, 3, 96, 96).to(memory_format=torch.channels_last)
    mask = torch.zeros(batch, 96, 96, dtype=torch.uint8)
    seconds = []
    for _ in range(rounds + 2):
        if world > 1 and not ddp:
            dist.barrier()  # they work at the same time, as they would
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = network(image)
        optimizer.zero_grad(set_to_none=True)
        loss(logits, mask).mean().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def _serve(rank: int, world: int, file: str, threads: int, batch: int, widths: list[int], ddp: bool, rounds: int, out):
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    out[rank] = steps_of(rank, world, threads, batch, widths, ddp, rounds)
    if world > 1:
        dist.destroy_process_group()


def read_processes(folder: Path, widths: list[int], batch: int, rounds: int, repeats: int) -> list[str]:
    from torch.multiprocessing import Manager, spawn

    plans = {
        "one process, two threads": (1, 2, batch, False),
        "one process, one thread, half the batch, alone": (1, 1, batch // 2, False),
        "two of these at once, exchanging nothing": (2, 1, batch // 2, False),
        "two of these with DistributedDataParallel, gloo": (2, 1, batch // 2, True),
    }
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with Manager() as manager:
        for repeat in range(repeats):
            for name, (world, threads, own, ddp) in plans.items():
                out = manager.dict()
                file = str(folder / f"group {repeat} {len(found)} {name}")
                spawn(_serve, (world, file, threads, own, widths, ddp, rounds, out), nprocs=world)
                found[name].append((max(out.values()), min(out.values())))
    seconds = {name: statistics.median(slow for slow, _ in pairs) for name, pairs in found.items()}
    apart = {name: statistics.median(slow / fast - 1 for slow, fast in pairs) for name, pairs in found.items()}
    base, *_, last = seconds.values()
    lines = [
        f"Steps of {batch} images of 96x96 in all, widths {', '.join(map(str, widths))}; the slower process counts; "
        f"median of {repeats} interleaved starts of {rounds} steps:",
        "",
        "| | ms a step | speed against the first | the slower one takes longer by |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {value * 1e3:.0f} | {base / value:.2f} | {apart[name]:.0%} |"
            for name, value in seconds.items()
        ),
        "",
        f"Two processes reach {base / last:.2f} of the images a second of one. First row to second: what two "
        "threads gain over one, at half the images. Second to third: both cores are busy and share the memory. Third "
        "to fourth: the exchange of gradients, and waiting for the slower one.",
        "",
    ]
    return lines
