"""Laws of the costs. No test looks at a time."""

import itertools

import pytest
import torch
from torch import nn

from unetpp.models.segmenter import Segmenter
from unetpp.network import profiling
from unetpp.network.losses import deep_supervision_loss
from unetpp.network.model import NestedUNet
from unetpp.network.pruning import prune


def test_parameters_are_what_training_learns():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert profiling.count_parameters(module) == (3 * 9 + 1) * 8 + 2 * 8


@pytest.mark.parametrize("size", [8, 17])
def test_macs_of_a_convolution_follow_the_closed_form(size):
    module = nn.Conv2d(3, 8, 3, padding=1)
    assert profiling.count_macs(module, torch.rand(2, 3, size, size)) == 2 * size * size * 8 * 3 * 9


def test_macs_of_depth_one_follow_the_closed_form():
    network = prune(NestedUNet([4, 8, 16]).eval(), 1)
    level_0, level_1 = 32 * 32, 16 * 16
    expected = level_0 * 9 * (3 * 4 + 4 * 4) + level_1 * 9 * (4 * 8 + 8 * 8)  # X[0,0], X[1,0]
    expected += level_0 * 9 * ((4 + 8) * 4 + 4 * 4) + level_0 * 4  # X[0,1] and the head
    assert profiling.count_macs(Segmenter(network), torch.rand(1, 3, 32, 32)) == expected


def test_macs_leave_the_module_as_it_was():
    module = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1)).eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    profiling.count_macs(module, torch.rand(1, 1, 8, 8))
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


class Steps(nn.Module):
    """Holds 1, then 2, then 4 tensors of the input's size at once, and returns one."""

    def forward(self, x):
        first = x + 1
        second = first + 1
        del first
        joined = torch.cat([second, second, second])
        del second
        return joined[:1] + 1


@pytest.mark.parametrize("skips", ["dense", "encoder"])
def test_a_pass_holds_no_node_that_nobody_reads_later(skips):
    """At most X[0, 3]'s skips, what is upsampled for it, and a copy of all as one; channels last, without reorders."""
    segmenter = Segmenter(prune(NestedUNet((16, 32, 48, 64), skips=skips).eval(), 3))
    segmenter.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's overloads lack it
    image = torch.rand(1, 3, 192, 192).contiguous(memory_format=torch.channels_last)
    inputs = (3 if skips == "dense" else 1) * 16 + 32
    assert profiling.measure_peak_memory_mib(segmenter, image) <= 1.1 * 4 * 2 * inputs * 192**2 / 2**20


def test_peak_memory_is_the_most_held_at_once():
    example = torch.zeros(1, 1, 512, 512)  # 1 MiB
    assert profiling.measure_peak_memory_mib(nn.Identity(), example) == 0
    assert profiling.measure_peak_memory_mib(nn.ReLU(), example) == pytest.approx(1, abs=0.01)
    assert profiling.measure_peak_memory_mib(nn.Sequential(*[nn.ReLU()] * 5), example) == pytest.approx(2, abs=0.01)
    assert profiling.measure_peak_memory_mib(Steps(), example) == pytest.approx(4, abs=0.01)


def test_peak_memory_grows_with_the_depth():
    network = NestedUNet([4, 8, 16, 32]).eval()
    example = torch.rand(1, 3, 64, 64)
    peaks = [profiling.measure_peak_memory_mib(prune(network, depth), example) for depth in network.depths]
    assert peaks == sorted(peaks)
    assert peaks[0] > 0


def test_each_round_runs_each_module_once_in_turn():
    calls = []

    class Named(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            calls.append(self.name)
            assert torch.is_inference_mode_enabled()
            return x

    latency = profiling.measure_latency({"a": Named("a"), "b": Named("b")}, torch.rand(1), rounds=4, warmup=2)
    assert calls == ["a", "b"] * 6
    assert set(latency) == {"a", "b"}
    assert all(each.median_ms > 0 for each in latency.values())


def test_noise_is_the_middle_half_of_the_rounds_by_their_median(monkeypatch):
    times = iter([9.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(profiling, "_time", lambda *_: next(times))
    found = profiling.measure_latency({"": nn.Identity()}, torch.rand(1), rounds=5, warmup=1)[""]
    assert found.median_ms == 3000
    assert found.spread == pytest.approx(2 / 3)
    assert (found.p95_ms, found.p99_ms) == (None, None)  # five rounds know neither


@pytest.mark.parametrize(
    ("times", "rounds", "ended"),
    [
        ([0.001], 100, "rounds"),  # quick: as many as are asked for
        ([1.0], 20, "precise"),  # steady: what is known is not measured on
        ([0.5, 3.0], 69, "time"),  # noisy: in the time that there is
        ([60.0], 3, "time"),
    ],
)
def test_rounds_end_where_the_median_is_known_or_the_time_is_over(monkeypatch, times, rounds, ended):
    endless = itertools.cycle(times)
    monkeypatch.setattr(profiling, "_time", lambda *_: next(endless))
    shown = []
    found = profiling.measure_latency(
        {"": nn.Identity()}, torch.rand(1), rounds=100, watch=lambda each: shown.append(len(each)) or each, max_s=120
    )[""]
    assert (found.rounds, found.ended) == (rounds, ended)
    assert shown[0] >= rounds  # what the time that is left is counted to
    assert (found.p95_ms is None, found.p99_ms is None) == (rounds < 20, rounds < 100)


def test_no_larger_batch_is_tried_than_the_time_allows(monkeypatch):
    monkeypatch.setattr(profiling, "_time", lambda _module, example: 1.0 * len(example) ** 0.9)
    found = profiling.find_best_batch({"a": nn.Identity()}, torch.rand(1, 1, 2, 2), max_batch=64, max_s=60)["a"]
    assert found.largest == 8  # four passes each of 1, 1.9, 3.5 and 6.5 s: those of 16 would take as long again


def test_the_best_batch_is_the_one_of_most_images_a_second(monkeypatch):
    seconds = {1: 1.0, 2: 1.5, 4: 2.0, 8: 8.0, 16: 0.001}  # the search ends at 8, where nothing is gained
    monkeypatch.setattr(profiling, "_time", lambda _module, example: seconds[len(example)])
    found = profiling.find_best_batch({"a": nn.Identity()}, torch.rand(1, 1, 2, 2), max_batch=16)
    assert (found["a"].batch, found["a"].images_per_s) == (4, pytest.approx(2))


@pytest.mark.parametrize(("max_batch", "tried"), [(1, [1]), (3, [1, 2]), (4, [1, 2, 4])])
def test_no_batch_is_larger_than_allowed(monkeypatch, max_batch, tried):
    sizes = []

    def time(_module, example):
        sizes.append(len(example))
        return 1.0

    monkeypatch.setattr(profiling, "_time", time)
    profiling.find_best_batch({"a": nn.Identity()}, torch.rand(1, 1, 2, 2), max_batch)
    assert sorted(set(sizes)) == tried


@pytest.mark.gpu
def test_peak_memory_on_a_gpu_is_the_most_held_at_once():
    example = torch.zeros(1, 1, 512, 512, device="cuda")
    assert profiling.measure_peak_memory_mib(Steps(), example) == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize(
    ("widths", "side_px", "batch", "skips"),
    [
        ((8, 16, 32, 64), 96, 4, "dense"),
        ((32, 64, 128, 256), 64, 2, "dense"),
        ((16, 32, 64, 128, 256), 64, 2, "short"),
        ((16, 32, 64), 128, 4, "plain"),
    ],
)
def test_the_model_of_training_memory_is_near_what_torch_counts_and_not_below(widths, side_px, batch, skips):
    network = NestedUNet(widths, skips=skips, deep_supervision=skips != "plain")
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - no overload of torch's
    optimizer = torch.optim.AdamW(network.parameters())
    image, mask = torch.rand(batch, 3, side_px, side_px), torch.zeros(batch, side_px, side_px, dtype=torch.uint8)
    image = image.contiguous(memory_format=torch.channels_last)

    class Step(torch.nn.Module):
        """One step of training, as `measure_peak_memory_mib` runs it."""

        @torch.inference_mode(False)
        @torch.enable_grad()
        def forward(self, _):
            deep_supervision_loss(network(image), mask).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    held = 3 * 4 * profiling.count_parameters(network) / profiling.MIB  # weights and moments, which outlive a step
    measured = profiling.measure_peak_memory_mib(Step(), image) + held
    assert 0.8 < measured / profiling.estimate_training_mib(network, batch, side_px) <= 1.02
