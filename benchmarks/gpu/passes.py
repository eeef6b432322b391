"""Parts about prediction: each depth's pass, alone and in batches, in the ways in which torch can run it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu.scale import Scale
from benchmarks.machine import SHORT
from tests.unetpp.network.classic import ClassicNestedUNet
from unetpp import NestedUNet, prune
from unetpp.network.folding import fold
from unetpp.network.profiling import measure_latency, measure_peak_memory_mib

EAGER = "eager, fp32, NCHW"


class Lean(nn.Module):
    """A network in half precision with channels last, from and to fp32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network = network.to(dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.dtype = dtype

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits = self.network(image.to(self.dtype, memory_format=torch.channels_last))
        return tuple(one.float() for one in logits)


class Graphed(nn.Module):
    """A pass whose kernels are launched at once: a CUDA graph for each shape of images."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self._captured: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if image.shape not in self._captured:
            self._captured[image.shape] = self._capture(image)
        graph, source, logits = self._captured[image.shape]
        source.copy_(image)
        graph.replay()
        return logits

    def _capture(self, image: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        source, side = image.clone(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their kernels before they are recorded
            for _ in range(3):
                self.module(source)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.module(source)
        return graph, source, logits


def run_eagerly(scale: Scale) -> Iterator[str]:
    """Eager, folded with channels last in half precision, and the same as a CUDA graph."""
    network, classic = _networks(scale)
    modules: dict[str, nn.Module] = {f"classic | {EAGER}": classic}
    for depth in network.depths:
        pruned = prune(network, depth)
        modules[f"L{depth} | {EAGER}"] = pruned
        for dtype in scale.half_types:
            name, lean = f"L{depth} | folded, channels_last, {SHORT[dtype]}", Lean(fold(pruned), dtype)
            modules[name] = lean
            if scale.device.type == "cuda":
                modules[f"{name}, CUDA graph"] = Graphed(lean)
    yield from _measured(scale, modules)


def run_compiled(scale: Scale) -> Iterator[str]:
    """As torch.compile makes them, the deepest first; one depth after another, since each takes its time to compile."""
    if not scale.compiles:
        yield "Not compiled at this size."
        return
    network, _ = _networks(scale)
    dtype = scale.half_types[-1]
    for depth in reversed(network.depths):
        for mode in ("default", "reduce-overhead"):
            torch.compiler.reset()
            lean = Lean(fold(prune(network, depth)), dtype)
            name = f"L{depth} | compile {mode}, folded, channels_last, {SHORT[dtype]}"
            modules = {
                f"L{depth} | {EAGER}": prune(network, depth),
                name: torch.compile(lean, mode=mode, dynamic=False),
            }
            yield from _measured(scale, modules)


def _networks(scale: Scale) -> tuple[NestedUNet, nn.Module]:
    torch.manual_seed(0)
    network, classic = NestedUNet(scale.widths), ClassicNestedUNet(list(scale.widths))
    return network.to(scale.device).eval(), classic.to(scale.device).eval()


def _measured(scale: Scale, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Beside the first module."""
    one = torch.rand(1, 3, scale.pass_px, scale.pass_px, device=scale.device)
    many = one.repeat(scale.pass_batch, 1, 1, 1)
    alone = measure_latency(modules, one, 5 * scale.rounds)
    together = measure_latency(modules, many, scale.rounds)
    first = next(iter(modules))
    yield (
        f"| depth | pass of {scale.pass_px}x{scale.pass_px} | ms, one image | as fast as the first "
        f"| images/s, batches of {scale.pass_batch} | as fast as the first | peak MiB of a batch |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for name, module in modules.items():
        ratios = [found[first].median_ms / found[name].median_ms for found in (alone, together)]
        rate = 1000 * scale.pass_batch / together[name].median_ms
        # What a graph holds, it holds from its capture on.
        peak = "" if "graph" in name or "reduce" in name else f"{measure_peak_memory_mib(module, many):.0f}"
        yield f"| {name} | {alone[name].median_ms:.3f} | {ratios[0]:.2f} | {rate:.0f} | {ratios[1]:.2f} | {peak} |"
    yield ""
