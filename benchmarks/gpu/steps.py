"""Parts about the training step: against others, compiled, exchanging gradients, repeatable, with its augmentation."""

import tempfile
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.contenders import CLASSIC, OURS, Contender, Step, draw_batch, make_own, make_peers, ours, race, tabulate
from benchmarks.gpu.scale import Scale
from benchmarks.machine import matrix_peak, timed
from pipelines.training.ddp import set_determinism
from unetpp.data.device_augment import augment_batch, draw

TARGETS = {"classic, fp32": 3.0, "classic, autocast": 1.3}


def compare_steps(scale: Scale) -> Iterator[str]:
    """Ours against the classic implementation."""
    for size, batch in scale.sizes.items():
        contenders = make_own([*scale.widths], size, scale.device)
        yield from _raced(scale, size, batch, contenders)
        own = contenders[OURS].median_s
        read = [
            f"{one.median_s / own:.2f} times {which} (target {target:g})"
            for which, target in TARGETS.items()
            for name, one in contenders.items()
            if name.startswith(which)
        ]
        yield from (f"{OURS} is {', '.join(read)}.", "")
    yield f"`{CLASSIC}` runs as torch sets it: on GPUs since Ampere its convolutions compute in TF32."


def compare_peers(scale: Scale) -> Iterator[str]:
    """The peers, and ours with as many operations as they have, beside the classic implementation."""
    missing: list[str] = []
    for size, batch in scale.sizes.items():
        peers, missing = make_peers([*scale.widths], size, scale.device)
        if peers:
            own = make_own([*scale.widths], size, scale.device)
            yield from _raced(scale, size, batch, {CLASSIC: own[CLASSIC], OURS: own[OURS], **peers})
    if missing:
        yield f"Not measured: {'; '.join(missing)}."


def _raced(scale: Scale, size: int, batch: int, contenders: dict[str, Contender]) -> Iterator[str]:
    side = None if scale.device.type == "cuda" else 256
    peaks = {dtype: matrix_peak(dtype, scale.device, side) for dtype in {one.dtype for one in contenders.values()}}
    race(contenders, *draw_batch(batch, size, 0, scale.device), scale.rounds)
    yield from (f"### {size}x{size}, batches of {batch}", "", *tabulate(contenders, batch, peaks), "")


def compile_step(scale: Scale) -> Iterator[str]:
    """The step with `train.compile`, beside the step without."""
    if not scale.compiles:
        yield "Not compiled at this size."
        return
    size, batch = list(scale.sizes.items())[len(scale.sizes) // 2]
    image, mask = draw_batch(batch, size, 0, scale.device)
    for mode in ("default", "reduce-overhead"):
        torch.compiler.reset()
        compiled = ours([*scale.widths], scale.device, wrap=lambda one, mode=mode: torch.compile(one, mode=mode))
        seconds = timed(lambda compiled=compiled: compiled(image, mask), scale.device)
        steps = {OURS: ours([*scale.widths], scale.device), f"`train.compile: {mode}`": compiled}
        yield from _compared(scale, size, batch, steps)
        yield from (f"The first step took {seconds:.0f} s.", "")


def exchange(scale: Scale) -> Iterator[str]:
    """What DistributedDataParallel costs by itself: one process, which exchanges gradients with nobody."""
    backend = "nccl" if scale.device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            for size, batch in list(scale.sizes.items())[:2]:
                steps = {
                    OURS: ours([*scale.widths], scale.device),
                    f"{OURS}, DDP over {backend}": ours([*scale.widths], scale.device, wrap=_wrapped),
                }
                yield from _compared(scale, size, batch, steps)
        finally:
            dist.destroy_process_group()


def _wrapped(network: nn.Module) -> DistributedDataParallel:
    index = next(network.parameters()).device.index
    return DistributedDataParallel(network, None if index is None else [index], gradient_as_bucket_view=True)


def repeat(scale: Scale) -> Iterator[str]:
    """What `train.deterministic` costs."""

    def under(wanted: bool) -> Step:
        step = ours([*scale.widths], scale.device)

        def run(image: Tensor, mask: Tensor) -> Tensor:
            set_determinism(wanted)
            return step(image, mask)

        return run

    for size, batch in list(scale.sizes.items())[:2]:
        yield from _compared(scale, size, batch, {OURS: under(False), "`train.deterministic`": under(True)})
        set_determinism(False)


def augment(scale: Scale) -> Iterator[str]:
    """`augment.on_device` beside the step, and the same computed by the processor."""
    size, batch = next(iter(scale.sizes.items()))
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(256, (batch, size, size, 3), generator=rng, dtype=torch.uint8)
    mask = torch.randint(2, (batch, size, size), generator=rng, dtype=torch.uint8)
    draws = torch.tensor([draw((0, 0, str(n)), "all", True, 0.3, 20, 3) for n in range(batch)])
    limits = torch.tensor([[0.0, 255.0]]).repeat(batch, 1)
    moments = torch.tensor([0.5, 0.3]).view(1, 2, 1).repeat(batch, 1, 3)
    raw = [one.pin_memory() if scale.device.type == "cuda" else one for one in (image, mask, draws, limits, moments)]

    def made(device: torch.device) -> tuple[Tensor, Tensor]:
        return augment_batch(*(one.to(device, non_blocking=True) for one in raw))

    yield from ("| augmentation | images/s |", "| --- | ---: |")
    for device in dict.fromkeys((scale.device, torch.device("cpu"))):
        made(device)
        rate = batch / min(timed(lambda device=device: made(device), device) for _ in range(scale.rounds))
        yield f"| copied to {device.type} and augmented there | {rate:.0f} |"
    yield ""
    step = ours([*scale.widths], scale.device)
    alone = draw_batch(batch, size, 0, scale.device)
    steps: dict[str, Step] = {
        OURS: lambda *_: step(*alone),
        f"{OURS}, each batch copied and augmented before": lambda *_: step(*made(scale.device)),
    }
    yield from _compared(scale, size, batch, steps)


def _compared(scale: Scale, size: int, batch: int, steps: dict[str, Step]) -> Iterator[str]:
    contenders = {name: Contender(step, torch.float32, 0) for name, step in steps.items()}
    race(contenders, *draw_batch(batch, size, 0, scale.device), scale.rounds)
    first = next(iter(contenders.values()))
    yield from (
        f"| step, {size}x{size}, batches of {batch} | ms | of the first | peak MiB |",
        "| --- | ---: | ---: | ---: |",
    )
    for name, one in contenders.items():
        ratio = f"{one.median_s / first.median_s:.2f}"
        yield f"| {name} | {1000 * one.median_s:.2f} | {ratio} | {one.peak_mib:.0f} |"
    yield ""
