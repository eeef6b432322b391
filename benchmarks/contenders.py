"""Implementations of a training step: the classic implementation, the peers' networks, and ours.

The classic one is the same network written from the definition, as it is commonly run: eager, fp32, NCHW. The peers
are segmentation_models.pytorch's UnetPlusPlus and MONAI's BasicUNetPlusPlus, if they can be imported. They are other
networks of that name, so their multiply-accumulates are given next to their speed, and ours is also measured with as
many operations as each of them.
"""

import gc
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import SHORT, timed
from tests.unetpp.network.classic import ClassicNestedUNet
from unetpp import NestedUNet
from unetpp.data.scaling import standardise
from unetpp.network.profiling import count_macs, measure_peak_memory_mib
from unetpp.training.loop import choose_precision, make_loss, make_optimizer, make_scaler
from unetpp.training.step import TrainStep

Step = Callable[[Tensor, Tensor], Tensor]
CLASSIC, OURS = "classic, fp32, NCHW", "ours, auto"
EQUAL = 0.1  # networks whose multiply-accumulates differ by less are compared as they are


@dataclass
class Contender:
    """One way to make a step, and what was measured of it."""

    step: Step
    dtype: torch.dtype
    macs: int  # of an image's forward pass
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def plain(network: nn.Module, dtype: torch.dtype, device: torch.device) -> Step:
    """The step that everybody writes."""
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)

    def step(image: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = network(image)
        logits = tuple(logits) if isinstance(logits, list | tuple) else (logits,)
        loss = make_loss("ce_dice", "mean", range(1, len(logits) + 1))(logits, mask).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def ours(
    widths: list[int],
    device: torch.device,
    precision: str = "auto",
    levels: int = 0,
    wrap: Callable[[nn.Module], Any] = lambda network: network,
) -> Step:
    """The step of the train stage; `wrap` is what the stage puts around the network, such as torch.compile."""
    network = NestedUNet(widths).train()
    network.checkpoint_levels = levels
    network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(network, "adamw", 1e-3, 0.9, 0.01)
    loss, dtype = make_loss("ce_dice", "mean", network.depths), choose_precision(precision, device)
    step = TrainStep(wrap(network), optimizer, loss, device, dtype, scaler=make_scaler(device, dtype))
    return lambda image, mask: step(image, mask, len(mask), 1e-3, 0, 0)[0] / len(mask)


def smp(_widths: list[int]) -> nn.Module:
    import segmentation_models_pytorch  # pyright: ignore[reportMissingImports]

    return segmentation_models_pytorch.UnetPlusPlus("resnet34", encoder_weights=None)


def monai(widths: list[int]) -> nn.Module:
    from monai.networks.nets import BasicUNetPlusPlus  # pyright: ignore[reportMissingImports]

    return BasicUNetPlusPlus(2, 3, 1, (*widths, widths[0]), deep_supervision=True)


def monai_default(_widths: list[int]) -> nn.Module:
    from monai.networks.nets import BasicUNetPlusPlus  # pyright: ignore[reportMissingImports]

    return BasicUNetPlusPlus(2, 3, 1, deep_supervision=True)


PEERS = {
    "segmentation_models.pytorch UnetPlusPlus (resnet34)": smp,
    "MONAI BasicUNetPlusPlus, our widths": monai,
    "MONAI BasicUNetPlusPlus (default)": monai_default,
}


def widths_of(macs: int, size: int) -> list[int]:
    """Of our network of about so many multiply-accumulates: multiples of 8, about doubled by level."""

    def count(widths: list[int]) -> float:
        below = [3, *widths]
        channels = [
            (w, below[i] if j == 0 else j * w + widths[i + 1]) for i, w in enumerate(widths) for j in range(5 - i)
        ]
        levels = [i for i in range(5) for _ in range(5 - i)]
        return sum(9 * w * (into + w) * (size / 2**i) ** 2 for i, (w, into) in zip(levels, channels, strict=True))

    shares = [0.6 + 0.01 * step for step in range(80)]
    tried = [[base, *(8 * round(base * 2**i * s / 8) for i in range(1, 5))] for base in range(8, 72, 8) for s in shares]
    return min(tried, key=lambda widths: abs(count(widths) - macs))


def make_own(widths: list[int], size: int, device: torch.device) -> dict[str, Contender]:
    """The classic implementation first, then ours."""
    auto, macs, found = choose_precision("auto", device), _macs(NestedUNet(widths), size), {}
    for dtype in dict.fromkeys([torch.float32, auto]):
        found[_common("classic", dtype)] = Contender(plain(ClassicNestedUNet(widths), dtype, device), dtype, macs)
    found["ours, fp32"] = Contender(ours(widths, device, "fp32"), torch.float32, macs)
    found[OURS] = Contender(ours(widths, device), auto, macs)
    found[f"{OURS}, checkpoint_levels 1"] = Contender(ours(widths, device, levels=1), auto, macs)
    return found


def make_peers(widths: list[int], size: int, device: torch.device) -> tuple[dict[str, Contender], list[str]]:
    """Each peer, and ours with as many operations as it; and which of them are missing, and why."""
    auto, macs = choose_precision("auto", device), _macs(NestedUNet(widths), size)
    found, missing = {}, []
    for title, make in PEERS.items():
        try:
            theirs = _macs(make(widths), size)
            for dtype in dict.fromkeys([torch.float32, auto]):
                found[_common(title, dtype)] = Contender(plain(make(widths), dtype, device), dtype, theirs)
        except Exception as error:
            missing.append(f"{title}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            continue
        if abs(theirs / macs - 1) > EQUAL:
            equal = widths_of(theirs, size)
            name = f"{OURS}, widths {' '.join(map(str, equal))}: as many operations as that peer"
            found[name] = Contender(ours(equal, device), auto, _macs(NestedUNet(equal), size))
    return found, missing


def _macs(network: nn.Module, size: int) -> int:
    return count_macs(network.to("meta").eval(), torch.empty(1, 3, size, size, device="meta"))


def _common(title: str, dtype: torch.dtype) -> str:
    return f"{title}, {'' if dtype == torch.float32 else 'autocast '}{SHORT[dtype]}, NCHW"


def race(contenders: dict[str, Contender], image: Tensor, mask: Tensor, rounds: int) -> None:
    """Measure all of them in rounds, so that what slows the machine for a while meets each; and their memory first."""
    for one in contenders.values():
        one.peak_mib = measure_peak_memory_mib(_Stepping(one.step, mask), image)  # which also warms up
        gc.collect()
    for _ in range(rounds):
        for one in contenders.values():
            one.seconds.append(timed(lambda step=one.step: step(image, mask), image.device))


def tabulate(contenders: dict[str, Contender], batch: int, peaks: dict[torch.dtype, float]) -> Iterator[str]:
    """Beside the first contender; the share of the peak counts 3 forward passes of multiply-accumulates a step."""
    yield (
        "| step | images/s | slowest to fastest | times the classic | peak memory | of the classic's | GMACs an image "
        "| of the matrix peak |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    classic = next(iter(contenders.values()))
    for name, one in contenders.items():
        rates = sorted(batch / value for value in one.seconds)
        share = 3 * 2 * one.macs * batch / one.median_s / peaks[one.dtype]
        yield (
            f"| {name} | {batch / one.median_s:.2f} | {rates[0]:.2f} to {rates[-1]:.2f} "
            f"| {classic.median_s / one.median_s:.2f} | {one.peak_mib:.0f} MiB "
            f"| {one.peak_mib / classic.peak_mib:.0%} | {one.macs / 1e9:.2f} | {share:.0%} |"
        )


class _Stepping(nn.Module):
    """A step as the module whose memory is measured: what torch holds at once in it beside what it held before."""

    def __init__(self, step: Step, mask: Tensor):
        super().__init__()
        self.step, self.mask = step, mask

    @torch.inference_mode(False)
    @torch.enable_grad()
    def forward(self, image: Tensor) -> Tensor:
        return self.step(image, self.mask)


def draw_batch(num: int, size: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Bright and dark discs on noise: something that 50 steps can learn."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    masks = np.zeros((num, size, size), np.uint8)
    images = rng.normal(0.4, 0.1, (num, 3, size, size)).astype(np.float32)
    for mask, image in zip(masks, images, strict=True):
        for _ in range(6):
            (y, x), radius = rng.integers(0, size, 2), rng.uniform(0.05, 0.15) * size
            mask |= ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).astype(np.uint8)
        image += mask * rng.uniform(0.1, 0.3)
    return standardise(torch.from_numpy(images)).to(device), torch.from_numpy(masks).to(device)
