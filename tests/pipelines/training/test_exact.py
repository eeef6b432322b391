"""A training run gives the same bits wherever it was cut, and the same numbers in however many processes."""

from collections import Counter
from itertools import chain

import pytest
import torch

import unetpp
from pipelines.storage.places import Folder
from pipelines.storage.run_store import RunStore
from pipelines.training.batches import Batches
from pipelines.training.epochs import Training, Wish, epochs
from pipelines.training.spec import TrainSpec
from pipelines.training.state import TrainState
from tests.pipelines.training.small import CPU, assert_same, last, run_processes, spec_of, states_of
from unetpp import NestedUNet
from unetpp.network.masks import FOR_INSTANCES
from unetpp.training import batch_norm
from unetpp.training.batch_norm import find_batch_norms
from unetpp.training.loop import cut_epoch

CROPS = {"crop_px": 24, "foreground_crops": 0.5, "class_weights": "balanced"}
ON_DEVICE = {"on_device": True}
ENCODER = {"encoder": "tf_efficientnet_lite0"}
INSTANCES = {"targets": FOR_INSTANCES}
FROZEN = {"encoder_lr": 0.1, "freeze_encoder_epochs": 1}


@pytest.mark.parametrize(
    ("model", "augment", "train"),
    [
        ({}, {}, {}),
        ({"dropout": 0.2} | INSTANCES, {}, {"ema": 0.9, "accumulate": 2, "clip_norm": 0.5, "nonfinite": "skip"}),
        pytest.param({}, {}, CROPS | {"loader_workers": 1}, marks=pytest.mark.nightly),
        (INSTANCES, ON_DEVICE, CROPS | {"ema": 0.9, "crops_per_image": 2}),
        (ENCODER, {}, FROZEN),
    ],
    ids=["plain", "everything", "crops of a loader", "crops on the device", "an encoder"],
)
def test_training_cut_at_any_step_equals_an_uninterrupted_one_bit_for_bit(
    params, prepared, tmp_path, model, augment, train
):
    spec = spec_of(params, prepared, model, augment, checkpoint_every_steps=1, **train)
    cuts = []
    for state in epochs(spec, CPU):
        cuts.append(RunStore(Folder(tmp_path / str(len(cuts)))))
        cuts[-1].add(state.to_dict())
    whole = TrainState.from_dict(cuts[-1].newest()[0])
    steps = len(cut_epoch(spec.manifest.splits["train"].num_images * spec.train.crops_per_image, 8))
    assert len(cuts) == 2 * steps
    # At the first step, inside of each epoch, between them, and at the last step.
    for number in {0, steps - 2, steps - 1, steps, 2 * steps - 2}:
        state = TrainState.from_dict(cuts[number].newest()[0])
        assert (state.step > 0) == ((number + 1) % steps != 0)
        assert_same(last(spec, state), whole)


def test_checkpoints_inside_of_an_epoch_change_nothing(params, prepared):
    assert_same(last(spec_of(params, prepared)), last(spec_of(params, prepared, checkpoint_every_steps=2)))


@pytest.mark.parametrize(
    ("model", "augment"), [(INSTANCES, {"rotate": 30}), ({}, ON_DEVICE)], ids=["ahead", "on the device"]
)
def test_processes_that_make_the_batches_change_no_bit_of_a_training(params, prepared, model, augment):
    in_line, ahead = (last(spec_of(params, prepared, model, augment, **CROPS, loader_workers=n)) for n in (0, 2))
    assert_same(in_line, ahead)
    assert all(0 <= row["data_wait_share"] <= 1 for row in ahead.history)


def test_training_that_was_asked_to_stop_goes_on_from_the_step_it_was_in(params, prepared):
    spec = spec_of(params, prepared, {"dropout": 0.2}, ema=0.9)
    whole, asked = last(spec), iter([Wish.GO_ON, Wish.KEEP, Wish.STOP])
    places, state = [], None
    for state in epochs(spec, CPU, wish=lambda: next(asked)):
        places.append((state.epoch, state.step, state.stopped))
    assert places == [(0, 2, False), (0, 3, True)]
    assert_same(last(spec, state), whole)


def test_averaged_weights_are_what_is_validated_and_kept(params, prepared):
    state, plain = last(spec_of(params, prepared, ema=0.9)), last(spec_of(params, prepared))
    assert state.weights is not None
    assert state.ema is not None
    assert plain.weights is not None
    assert all(torch.equal(value, plain.weights[key]) for key, value in state.weights.items())
    first = states_of(spec_of(params, prepared, ema=0.9, epochs=1))[0]
    assert all(torch.equal(value, (first.ema or {})[key]) for key, value in first.best.weights.items())
    assert state.history[-1]["val_iou"] != plain.history[-1]["val_iou"]
    assert [row["train_loss"] for row in state.history] == [row["train_loss"] for row in plain.history]


@pytest.mark.parametrize(("num", "batch_size", "world"), [(28, 8, 1), (29, 8, 2), (5, 8, 2), (3, 2, 2), (64, 8, 4)])
def test_every_sample_counts_once_in_an_epoch(num, batch_size, world):
    sizes = cut_epoch(num, batch_size, world)
    assert sum(sizes) == num
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(num, world)
    assert max(sizes) <= max(batch_size, world + 1)
    assert cut_epoch(64, 8) == [8] * 8


def shares_of(world: int, spec: TrainSpec) -> list[tuple[list[int], ...]]:
    """What each process has of each batch of an epoch."""
    data, _ = spec.open_splits()
    ranks = [Batches(spec, data, CPU, rank, world) for rank in range(world)]
    shares = list(zip(*(one.shards(1) for one in ranks), strict=True))
    assert [sum(map(len, batch)) for batch in shares] == ranks[0].sizes
    for one in ranks:
        one.close()
    return shares


def test_shards_of_all_processes_are_the_epoch(params, prepared):
    seen: Counter = Counter()
    for shares in shares_of(3, spec_of(params, prepared, num_workers=3, batch_size=6)):
        assert min(map(len, shares)) >= 1
        seen.update(chain.from_iterable(shares))
    assert seen == Counter(range(sum(seen.values())))


# Several processes.


def test_statistics_become_the_means_over_the_processes(monkeypatch):
    network = NestedUNet((4, 6))
    norms = find_batch_norms(network)
    for norm in norms:
        norm.get_buffer("running_mean").fill_(1)
        norm.get_buffer("running_var").fill_(3)
    monkeypatch.setattr(batch_norm.dist, "all_reduce", lambda value: value.add_(5))  # of the other process
    batch_norm.average_statistics(network, 2)
    assert norms
    for norm in norms:
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        assert torch.equal(mean, torch.full_like(mean, 3))
        assert torch.equal(variance, torch.full_like(variance, 4))


@pytest.mark.slow
def test_several_processes_equal_one_and_those_that_leave_and_come_change_nothing_but_roundings(
    params, prepared, tmp_path
):
    """Of uneven batches, and of a validation split that they divide unevenly.

    Then three processes, one, and two: what each hands to the next is a checkpoint inside of an epoch.
    """
    group = {"norm": "group"}
    many = {"batch_size": 6, "checkpoint_every_steps": 2, "optimizer": "sgd", "learning_rate": 0.05}
    jobs = {
        "group": (spec_of(params, prepared, group | INSTANCES, **many, num_workers=3, accumulate=2, ema=0.9), "cut"),
        "batch": (spec_of(params, prepared, **many, num_workers=3), "cut"),
        "static": (spec_of(params, prepared, group, **many, num_workers=3, static_graph=True), None),
    }
    jobs["encoder"] = (spec_of(params, prepared, ENCODER, **many, **FROZEN, num_workers=3), "cut")
    elastic = {"num_workers": (1, 3), "batch_size": 6, "checkpoint_every_steps": 1, "ema": 0.9, "epochs": 3}
    spec = spec_of(params, prepared, group, optimizer="sgd", learning_rate=0.02, **elastic)
    jobs["elastic"] = (spec, None)
    states = run_processes(3, jobs, tmp_path)
    for name, model, train in (("group", group | INSTANCES, {"ema": 0.9}), ("static", group, {})):
        alone = last(spec_of(params, prepared, model, None, **many, **train))
        for of_rank in states[name]:
            assert_near(of_rank[-1], alone, atol=2e-5, rtol=1e-3, iou=1e-4)
    for of_rank in (one for name in ("group", "batch", "encoder") for one in states[name]):
        assert_same(of_rank[-2], of_rank[-1])  # cut inside of an epoch, where each process has its own statistics
    # Statistics of batch norm at the end of an epoch are the same everywhere: the means over all processes.
    for name in ("batch", "encoder"):
        assert_same(states[name][0][-1], states[name][1][-1])

    def inside(states: list[TrainState], epoch: int, step: int) -> TrainState:
        return next(one for one in states if (one.epoch, one.step) == (epoch, step))

    whole = states["elastic"][0]
    one = states_of(spec, inside(whole, 0, 2))
    two = run_processes(2, {"two": (spec, inside(one, 1, 3))}, tmp_path)["two"]
    assert (inside(one, 1, 3).world, inside(whole, 0, 2).world) == (1, 3)
    for of_rank in two:
        assert_near(of_rank[-1], whole[-1], atol=1e-4, rtol=2e-3, iou=1e-3)


def assert_near(one: TrainState, other: TrainState, atol: float, rtol: float, iou: float) -> None:
    """But for the roundings of another order of sums."""
    for key, value in (other.weights or {}).items():
        torch.testing.assert_close((one.weights or {})[key], value, atol=atol, rtol=rtol, msg=key)
    for row, expected in zip(one.history, other.history, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert row["val_iou"] == pytest.approx(expected["val_iou"], abs=iou)
        assert row["learning_rate"] == expected["learning_rate"]


def test_statistics_of_a_part_of_an_epoch_are_each_process_own(params, prepared):
    training = Training(spec_of(params, prepared, epochs=1), CPU)
    assert find_batch_norms(training.network)
    row = training.statistics.flat()
    kept = training.statistics.keep()
    list(training.run())
    training.statistics.restore_flat(row)
    for buffer, value in zip(training.statistics.keep(), kept, strict=True):
        assert torch.equal(buffer, value)


def test_fewer_processes_hold_no_more_images_at_once_and_see_every_sample_once(params, prepared):
    spec = spec_of(params, prepared, num_workers=(1, 4), batch_size=8, accumulate=2)
    seen, parts, training = {}, {}, Training(spec, CPU)
    for world in (1, 2, 3, 4):
        seen[world] = [sorted(chain.from_iterable(shares)) for shares in shares_of(world, spec)]
        parts[world] = training._parts(world)
    assert all(batches == seen[1] for batches in seen.values())  # the same global batches
    assert sorted(chain.from_iterable(seen[3])) == list(range(len(training.train_split)))
    assert parts == {4: 2, 3: 3, 2: 4, 1: 8}  # one image at once


@pytest.mark.parametrize(("accumulate", "world", "expected"), [(None, None, 4), (2, 3, 4), (4, 3, 8)])
def test_parts_that_a_lack_of_memory_asked_for_stay_with_other_processes(params, prepared, accumulate, world, expected):
    spec = spec_of(params, prepared, num_workers=(1, 4), batch_size=8)
    assert Training(spec, CPU, TrainState(accumulate=accumulate, world=world)).step.accumulate == expected


def test_statistics_of_several_processes_become_those_of_others(params, prepared):
    training = Training(spec_of(params, prepared), CPU)
    norm = find_batch_norms(training.network)[0]
    rows = []
    for rank in (1.0, 3.0):
        norm.get_buffer("running_mean").fill_(rank)
        norm.get_buffer("num_batches_tracked").fill_(3)
        rows.append(training.statistics.flat())
    training.statistics.restore_flat(training.statistics.merge(torch.stack(rows), share=2))
    mean = norm.get_buffer("running_mean")
    assert torch.equal(mean, torch.full_like(mean, 2.0))
    assert norm.num_batches_tracked == 6


@pytest.mark.parametrize(("ema", "model", "how"), [(None, {}, {}), (0.9, ENCODER | INSTANCES, FROZEN)])
def test_fit_of_the_library_is_this_training_bit_for_bit(params, prepared, ema, model, how):
    changes = {"ema": ema, "head_weights": "sum", "clip_norm": 1.0} | how
    spec = spec_of(params, prepared, model, {"on_device": True}, epochs=3, **changes)
    state = last(spec)
    torch.manual_seed(spec.train.seed)
    network, told = spec.build_network(), []
    trained = unetpp.fit(
        network,
        *spec.open_splits(),
        epochs=3,
        warmup_epochs=1,
        precision="fp32",
        after_epoch=told.append,
        **changes,
    )
    assert all(torch.equal(value, state.best.weights[key]) for key, value in trained.network.state_dict().items())
    assert [one.loss for one in told] == [row["train_loss"] for row in state.history]
    assert [one.val_iou[2] for one in told] == [row["val_iou_L2"] for row in state.history]
