"""A training gives the same bits wherever it was cut, and the same numbers in however many processes."""

import copy
from collections import Counter
from itertools import chain

import pytest
import torch

from pipelines.core.training_sections import Train
from pipelines.storage.places import Folder
from pipelines.storage.run_store import RunStore
from pipelines.training.batches import Batches
from pipelines.training.epochs import Training, Wish, epochs
from pipelines.training.spec import open_splits
from tests.pipelines.training.runs import CPU, assert_same, last, run_processes, settings_of
from unetpp.training.batch_norm import find_batch_norms
from unetpp.training.loop import cut_epoch

EVERYTHING = {"ema": 0.9, "accumulate": 2, "clip_norm": 0.5, "nonfinite": "skip"}


@pytest.mark.parametrize(("model", "train"), [({}, {}), ({"dropout": 0.2}, EVERYTHING)], ids=["plain", "everything"])
def test_training_cut_at_any_step_equals_an_uninterrupted_one_bit_for_bit(params, prepared, tmp_path, model, train):
    settings = settings_of(params, prepared, model, checkpoint_every_steps=1, **train)
    cuts = []
    for state in epochs(settings, CPU, {}):
        cuts.append(RunStore(Folder(tmp_path / str(len(cuts)))))
        cuts[-1].add(state)
    whole, _ = cuts[-1].newest()
    steps = len(cut_epoch(settings["manifest"].splits["train"].num_images, 8))
    assert len(cuts) == 2 * steps
    # At the first step, inside of each epoch, between them, and at the last step.
    for number in {0, steps - 2, steps - 1, steps, 2 * steps - 2}:
        state, _ = cuts[number].newest()
        assert ("step" in state) == ((number + 1) % steps != 0)
        assert_same(last(epochs(settings, CPU, state)), whole)


def test_checkpoints_inside_of_an_epoch_change_nothing(params, prepared):
    rare = last(epochs(settings_of(params, prepared), CPU, {}))
    assert_same(rare, last(epochs(settings_of(params, prepared, checkpoint_every_steps=2), CPU, {})))


def test_training_that_was_asked_to_stop_goes_on_from_the_step_it_was_in(params, prepared):
    settings = settings_of(params, prepared, {"dropout": 0.2}, ema=0.9)
    whole = last(epochs(settings, CPU, {}))
    asked = iter([Wish.GO_ON, Wish.KEEP, Wish.STOP])
    states = [copy.deepcopy(state) for state in epochs(settings, CPU, {}, wish=lambda: next(asked))]
    assert [(state["epoch"], state["step"], "stopped" in state) for state in states] == [(0, 2, False), (0, 3, True)]
    for state in states:
        assert_same(last(epochs(settings, CPU, state)), whole)


@pytest.mark.parametrize(("num", "batch_size", "world"), [(28, 8, 1), (29, 8, 2), (5, 8, 2), (3, 2, 2), (64, 8, 4)])
def test_every_sample_counts_once_in_an_epoch(num, batch_size, world):
    sizes = cut_epoch(num, batch_size, world)
    assert sum(sizes) == num
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(num, world)
    assert max(sizes) <= max(batch_size, world + 1)
    assert cut_epoch(64, 8) == [8] * 8


def test_shards_of_all_processes_are_the_epoch(params, prepared):
    seen: Counter = Counter()
    for shares in shares_of(3, settings_of(params, prepared, num_workers=3, batch_size=6)):
        assert min(map(len, shares)) >= 1
        seen.update(chain.from_iterable(shares))
    assert seen == Counter(range(sum(seen.values())))


def shares_of(world: int, settings: dict) -> list[tuple[list[int], ...]]:
    """What each process has of each batch of an epoch."""
    data, _ = open_splits(settings)
    train, augment = Train.model_validate(settings["params"]["train"]), settings["params"]["augment"]
    ranks = [Batches(train, augment, data, 3, CPU, rank, world) for rank in range(world)]
    shares = list(zip(*(one.shards(1) for one in ranks), strict=True))
    assert [sum(map(len, batch)) for batch in shares] == ranks[0].sizes
    for one in ranks:
        one.close()
    return shares


# Several processes.


@pytest.mark.slow
def test_several_processes_equal_one_on_the_joint_batch(params, prepared, tmp_path):
    """Of uneven batches, and of a validation split that they divide unevenly."""
    group, sync = {"norm": "group"}, {"sync_batchnorm": True}
    many = {"batch_size": 6, "checkpoint_every_steps": 2, "optimizer": "sgd", "learning_rate": 0.05}
    jobs = {
        "group": (settings_of(params, prepared, group, **many, num_workers=3, accumulate=2, ema=0.9), "cut"),
        "sync": (settings_of(params, prepared, **many, num_workers=3, checkpoint_levels=2, **sync), "cut"),
        "batch": (settings_of(params, prepared, **many, num_workers=3), "cut"),
        "static": (settings_of(params, prepared, group, **many, num_workers=3, static_graph=True), ""),
    }
    states = run_processes(3, jobs, tmp_path)
    for name, model in (("group", group), ("sync", {}), ("static", group)):
        ema = {"ema": 0.9} if name == "group" else {}
        alone = last(epochs(settings_of(params, prepared, model, **many, **ema), CPU, {}))
        for of_rank in states[name]:
            for key, value in of_rank[-1]["weights"].items():
                torch.testing.assert_close(value, alone["weights"][key], atol=2e-5, rtol=1e-3, msg=f"{name} {key}")
            for row, one in zip(of_rank[-1]["history"], alone["history"], strict=True):
                assert row["val_iou"] == pytest.approx(one["val_iou"], abs=1e-4)
                assert row["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    for of_rank in (one for name in ("group", "sync", "batch") for one in states[name]):
        assert_same(of_rank[-2], of_rank[-1])  # cut inside of an epoch, where each process has its own statistics
    # Statistics of batch norm at the end of an epoch are the same everywhere: the means over all processes.
    for first, second in zip(*[states["batch"][rank][-1]["weights"].items() for rank in (0, 1)], strict=True):
        assert torch.equal(first[1], second[1]), first[0]


def test_statistics_of_a_part_of_an_epoch_are_each_process_own(params, prepared):
    training = Training(settings_of(params, prepared), CPU, {}, 0, 1, lambda: Wish.GO_ON)
    assert find_batch_norms(training.network)
    row = training.statistics.flat()
    kept = training.statistics.keep()
    list(training.run())
    training.statistics.restore_flat(row)
    for buffer, value in zip(training.statistics.keep(), kept, strict=True):
        assert torch.equal(buffer, value)
    training.batches.loader.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "train"),
    [({"norm": "group"}, {"accumulate": 1, "ema": 0.9}), ({}, {"sync_batchnorm": True})],
    ids=["group norm", "batch norm over all"],
)
def test_processes_that_leave_and_come_in_the_middle_of_an_epoch_change_nothing_but_roundings(
    params, prepared, tmp_path, model, train
):
    """Three processes, then one, then two: what each hands to the next is a checkpoint inside of an epoch."""
    elastic = {"num_workers": (1, 3), "batch_size": 6, "checkpoint_every_steps": 1, "epochs": 3}
    settings = settings_of(params, prepared, model, optimizer="sgd", learning_rate=0.02, **elastic, **train)

    def inside(states: list[dict], epoch: int, step: int) -> dict:
        return next(one for one in states if one["epoch"] == epoch and one.get("step") == step)

    whole = run_processes(3, {"whole": (settings, "")}, tmp_path)["whole"][0]
    one = [copy.deepcopy(state) for state in epochs(settings, CPU, inside(whole, 0, 2))]
    two = run_processes(2, {"two": (settings, inside(one, 1, 3))}, tmp_path)["two"]
    assert (inside(one, 1, 3)["world"], inside(whole, 0, 2)["world"]) == (1, 3)
    for rank in (0, 1):
        for key, value in two[rank][-1]["weights"].items():
            torch.testing.assert_close(value, whole[-1]["weights"][key], atol=1e-4, rtol=2e-3, msg=key)
        for row, expected in zip(two[rank][-1]["history"], whole[-1]["history"], strict=True):
            assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
            assert row["val_iou"] == pytest.approx(expected["val_iou"], abs=1e-3)
            assert row["learning_rate"] == expected["learning_rate"]


def test_fewer_processes_hold_no_more_images_at_once_and_see_every_sample_once(params, prepared):
    settings = settings_of(params, prepared, num_workers=(1, 4), batch_size=8, accumulate=2)
    seen, parts = {}, {}
    training = Training(settings, CPU, {}, 0, 1, lambda: Wish.GO_ON)
    training.batches.close()
    for world in (1, 2, 3, 4):
        seen[world] = [sorted(chain.from_iterable(shares)) for shares in shares_of(world, settings)]
        parts[world] = training._parts(world)
    assert all(batches == seen[1] for batches in seen.values())  # the same global batches
    assert sorted(chain.from_iterable(seen[3])) == list(range(len(training.train_split)))
    assert parts == {4: 2, 3: 3, 2: 4, 1: 8}  # one image at once


def test_parts_that_a_lack_of_memory_asked_for_stay_with_other_processes(params, prepared):
    settings = settings_of(params, prepared, num_workers=(1, 4), batch_size=8)
    for state, expected in (({}, 4), ({"accumulate": 2, "world": 3}, 4), ({"accumulate": 4, "world": 3}, 8)):
        whole = state and next(epochs(settings, CPU, {})) | state
        training = Training(settings, CPU, whole, 0, 1, lambda: Wish.GO_ON)
        assert training.step.accumulate == expected
        training.batches.loader.close()


def test_statistics_of_several_processes_become_those_of_others(params, prepared):
    training = Training(settings_of(params, prepared), CPU, {}, 0, 1, lambda: Wish.GO_ON)
    norm = find_batch_norms(training.network)[0]
    rows = []
    for rank in (1.0, 3.0):
        norm.running_mean.fill_(rank)
        norm.num_batches_tracked.fill_(3)
        rows.append(training.statistics.flat())
    training.statistics.restore_flat(training.statistics.merge(torch.stack(rows), share=2))
    assert torch.equal(norm.running_mean, torch.full_like(norm.running_mean, 2.0))
    assert norm.num_batches_tracked == 6
    training.batches.loader.close()
