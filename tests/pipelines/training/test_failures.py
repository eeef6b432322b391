"""What goes wrong in one of several processes is known to all in the same step: real processes, gloo, no Ray."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from pipelines.training.epochs import Training
from pipelines.training.spec import TrainSpec
from pipelines.training.state import TrainState
from tests.pipelines.training.small import CPU, assert_same, run_group, spec_of
from unetpp.data.arrow_split import Split
from unetpp.errors import UserError

pytestmark = pytest.mark.slow
WORLD, STEP = 2, 5  # processes; the step, counted over all epochs, in which something happens
MEMORY = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"


@dataclass(frozen=True)
class Case:
    """What happens in the process 1 at STEP: an error at a place; or, in all, more parts from there on."""

    where: str  # batch, forward, backward, end of backward, validation, or accumulate
    words: str = MEMORY
    fits: int = 1  # images: parts with so many or fewer go well


def disturb(training: Training, case: Case) -> None:
    """Let it happen."""
    step, network, calls = training.step, training.network, {"steps": -1}
    compute, make = step._compute_gradients, training.batches.loader._dataset.sample

    def count(*args, **kwargs):
        if kwargs.get("exchange", True):
            calls["steps"] += 1
        if case.where == "accumulate" and calls["steps"] == STEP:
            step.accumulate *= 2
        return compute(*args, **kwargs)

    def now(images: Tensor) -> bool:
        large = len(images) > case.fits and images.shape[-1] == 32  # what a process tells others with is smaller
        return large and calls["steps"] >= STEP and training.rank == 1

    def fail(*_):
        raise RuntimeError(case.words)

    def look(_module, inputs, logits: Tensor):
        if network.training and case.where == "forward" and now(inputs[0]):
            fail()
        if network.training and "backward" in case.where and now(inputs[0]):
            logits.register_hook(fail)

    step._compute_gradients = count
    if case.where == "batch":
        bad = training.batches.shards(1, 1)[STEP - len(training.sizes)][0]

        def sample(index: int, epoch: int):
            if (index, epoch) == (bad, 1):
                made: Any = make(index, epoch)
                raise_bug = made[0].no_such_name
                return raise_bug
            return make(index, epoch)

        training.batches.loader._dataset.sample = lambda index, epoch: named(training, sample, index, epoch)
    if case.where == "validation":
        split = cast(Split, training.val_split)  # without targets
        broken = Broken(split, len(split) - 1 - (len(split) - 1 - training.rank) % WORLD, training.rank)
        training.val_split = cast(Split, broken)
    # The block at the top is the last of the forward pass and the first of the backward pass.
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    last = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    (first if case.where == "end of backward" else last).register_forward_hook(look)


def named(training: Training, sample: Callable, index: int, epoch: int):
    try:
        return sample(index, epoch)
    except Exception as error:
        return training.batches.loader._dataset._named(error, [index], epoch)


class Broken:
    """A split of which one sample cannot be read by the process 1."""

    def __init__(self, split: Split, index: int, rank: int):
        self._split, self._index, self._rank = split, index, rank

    def __len__(self):
        return len(self._split)

    def __getitem__(self, index):
        if index == self._index and self._rank == 1:
            raise OSError(f"sample {index}: no such device")
        return self._split[index]


def work(rank: int, jobs: dict[str, tuple[TrainSpec, Case]], folder: Path) -> None:
    """Keep the last state of each training, or what it raised."""
    found: dict[str, TrainState | str] = {}
    for name, (spec, case) in jobs.items():
        training = Training(spec, CPU, None, rank, WORLD)
        disturb(training, case)
        try:
            found[name] = list(training.run())[-1]
        except UserError as error:
            found[name] = str(error)
    (folder / f"found-{rank}").write_bytes(pickle.dumps(found))


@pytest.mark.parametrize(
    "wheres",
    [
        pytest.param(("backward",), id="one place"),
        pytest.param(("forward", "end of backward"), id="all places", marks=pytest.mark.nightly),
    ],
)
def test_failure_of_one_process_is_the_same_error_in_all_and_lack_of_memory_makes_the_parts_of_all_smaller(
    params, prepared, tmp_path, wheres
):
    def spec(**train) -> TrainSpec:
        return spec_of(params, prepared, {"norm": "group"}, None, **{"num_workers": WORLD, "epochs": 3} | train)

    halve = {"on_oom": "halve", "ema": 0.9}
    jobs = {f"stop {where}": (spec(), Case(where, fits=2)) for where in wheres}
    jobs |= {f"halve {where}": (spec(**halve), Case(where, fits=2)) for where in wheres}
    jobs |= {f"quarter {where}": (spec(accumulate=2, **halve), Case(where)) for where in wheres}
    jobs |= {
        "halved": (spec(**halve), Case("accumulate")),
        "quartered": (spec(accumulate=2, **halve), Case("accumulate")),
        "bug": (spec(nonfinite="skip"), Case("forward", "a bug")),
        "late bug": (spec(), Case("end of backward", "a bug")),
        "static": (spec(static_graph=True), Case("batch")),
        "validation": (spec(), Case("validation")),
        "batch": (spec(), Case("batch")),
        "batch norm": (replace(spec(), model=params.model), Case("batch")),
    }
    run_group(WORLD, work, jobs, tmp_path)
    first, second = (pickle.loads((tmp_path / f"found-{rank}").read_bytes()) for rank in range(WORLD))
    for name in jobs:
        if "halve" in name or "quarter" in name:
            reference = "halved" if "halve" in name else "quartered"
            assert_same(first[name], first[reference])
            assert_same(second[name], first[reference])
            assert first[name].accumulate == (2 if reference == "halved" else 4)
        else:
            assert first[name] == second[name], name
    for where in wheres:
        said = first[f"stop {where}"]
        assert "out of memory at a batch of 3 image(s) of 32x32 px per process, 7 in all processes" in said
        assert "2 image(s) at a time fit: set train.accumulate=2" in said
        assert "in epoch 2, step 2 of 4, of " in said
        assert "(process 1 of 2)" in said
    for name in ("bug", "late bug"):
        assert "RuntimeError: a bug" in first[name]
        assert "in epoch 2, step 2 of 4, of " in first[name]
    for name in ("batch", "batch norm", "static"):
        assert "in epoch 2: AttributeError" in first[name]
    assert "OSError: sample 5: no such device" in first["validation"]
    assert "at the end of epoch 1 (process 1 of 2)" in first["validation"]
