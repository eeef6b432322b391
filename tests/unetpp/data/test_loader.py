"""The loader: the same batches whoever makes them, errors with a name, and no process left behind."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.conftest import REPOSITORY
from tests.waiting import wait_for
from unetpp.data import loader as module
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.augment import Augment
from unetpp.data.crops import Crops
from unetpp.data.device_augment import RawSamples
from unetpp.data.loader import AugmentedSamples, Loader, SampleError, find_sample
from unetpp.errors import UserError

NUM = 23
SHARDS = [[4, 1, 7], [0, 22, 2], [3, 5, 6], [8, 9, 10], [11], [12, 13, 14, 15]]


@pytest.fixture
def split(tmp_path) -> Split:
    rng = np.random.default_rng(0)
    with SplitWriter(tmp_path / "train.arrow") as writer:
        for number in range(NUM):
            side = 30 + number
            image, mask = rng.integers(0, 255, (side, 40, 3), np.uint8), rng.integers(0, 2, (side, 40), np.uint8)
            writer.add(f"cell {number}", "kind", image, mask)
    return Split(tmp_path / "train.arrow")


def samples_of(split: Split, on_device: bool = False):
    crops, limits = Crops(32, 0.5), {"flips": "all", "quarter_turns": True, "brightness": 0.3, "hue": 20, "channels": 3}
    if on_device:
        return RawSamples(split, crops, 7, **limits)
    return AugmentedSamples(split, Augment(crops, **limits), 7)


@pytest.fixture
def open_loader():
    opened: list[Loader] = []

    def make(*arguments, **named) -> Loader:
        opened.append(Loader(*arguments, **named))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # more than there are cores
@pytest.mark.parametrize("on_device", [False, True])
def test_batches_are_the_same_bit_for_bit_whoever_makes_them(split, open_loader, on_device):
    samples = samples_of(split, on_device)
    by_number = {}
    for num_workers in (0, 1, 3):
        loader = open_loader(samples, num_workers)
        by_number[num_workers] = [
            [[tensor.clone() for tensor in batch] for batch in loader.batches(SHARDS, epoch)] for epoch in (0, 1, 5)
        ]
    for epochs in by_number.values():
        assert [len(batches) for batches in epochs] == [len(SHARDS)] * 3
        for made, expected in zip(epochs, by_number[0], strict=True):
            for batch, same in zip(made, expected, strict=True):
                assert [tensor.stride() for tensor in batch] == [tensor.stride() for tensor in same]
                assert all(torch.equal(one, other) for one, other in zip(batch, same, strict=True))
    first, second, _ = by_number[0]
    assert not torch.equal(first[0][0], second[0][0])


def test_a_sample_is_drawn_alike_in_any_batch_and_by_any_rank(split, open_loader):
    loader = open_loader(samples_of(split))
    whole = next(loader.batches([list(range(NUM))], 3))
    for rank in range(2):
        (part,) = loader.batches([list(range(NUM))[rank::2]], 3)
        for one, all_of_it in zip(part, whole, strict=True):
            assert torch.equal(one, all_of_it[rank::2])


def test_an_epoch_that_was_left_does_not_reach_into_the_next(split, open_loader):
    loader = open_loader(samples_of(split), 2)
    left = loader.batches(SHARDS, 0)
    next(left)
    expected = list(open_loader(samples_of(split)).batches(SHARDS[::-1], 1))
    for batch, same in zip(loader.batches(SHARDS[::-1], 1), expected, strict=True):
        assert torch.equal(batch[0], same[0])


class Broken(AugmentedSamples):
    """One sample raises, or ends its process."""

    def __init__(self, split, error: Exception | None):
        super().__init__(split, Augment(Crops(16), "none", False, 0, 0, 3), 0)
        self.error = error

    def make(self, number, epoch):
        if number == 9:
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise self.error
        return super().make(number, epoch)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "raised"), [(KeyError("lost"), SampleError), (UserError("a.tif: no colour"), UserError)]
)
def test_an_error_names_its_sample_wherever_it_happens(split, open_loader, num_workers, error, raised):
    batches = open_loader(Broken(split, error), num_workers).batches(SHARDS, 4)
    assert len([next(batches) for _ in range(3)]) == 3  # those before it are whole
    with pytest.raises(raised, match=r"train\.arrow: sample 'cell 9' in epoch 5: .*(lost|a\.tif: no colour)") as caught:
        next(batches)
    if raised is SampleError:
        assert "in make" in caught.value.__notes__[0]  # the place in the code comes along


@pytest.mark.parametrize("num_workers", [0, 1])
def test_samples_of_different_shapes_are_named(split, open_loader, num_workers):
    samples = AugmentedSamples(split, Augment(Crops(None), "none", False, 0, 0, 3), 0)
    with pytest.raises(SampleError, match=r"samples 'cell 3', 'cell 4' in epoch 1: "):
        next(open_loader(samples, num_workers).batches([[3, 4]], 0))


def test_a_process_that_is_killed_is_an_error_and_no_wait_for_ever(split, open_loader):
    with pytest.raises(RuntimeError, match=r"a process that makes batches ended unexpectedly.*train\.loader_workers"):
        list(open_loader(Broken(split, None), 1).batches(SHARDS, 0))


def test_batches_that_do_not_fit_into_shared_memory_are_refused_with_the_numbers(split, open_loader, monkeypatch):
    usage = module.shutil.disk_usage("/")._replace(free=10_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"/dev/shm: 0 MiB are free.*--shm-size.*train\.loader_workers to 0"):
        open_loader(samples_of(split), 2).batches(SHARDS, 0)


def loader_processes() -> set[int]:
    """Children of this process that the loaders' server is or has started."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "forkserver" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def test_closing_ends_the_processes(split):
    before = loader_processes()
    loader = Loader(samples_of(split), 2)
    batches = loader.batches(SHARDS, 0)
    next(batches)
    assert len(loader_processes() - before) >= 2
    loader.close()
    wait_for(lambda: len(loader_processes() - before) <= 1)  # the server itself stays


SCRIPT = """
import os, signal, sys
from tests.unetpp.data.test_loader import SHARDS, Split, samples_of
from unetpp.data.loader import Loader

if __name__ == "__main__":
    batches = Loader(samples_of(Split(sys.argv[1])), 2).batches(SHARDS, 0)
    next(batches)
    print("ready", flush=True)
    if sys.argv[2] == "wait":
        signal.pause()
    if sys.argv[2] == "raise":
        raise KeyError("as the test wants")
"""


OTHER_ENDS = [pytest.param(end, marks=pytest.mark.nightly) for end in ("return", signal.SIGINT, signal.SIGTERM)]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["raise", signal.SIGKILL, *OTHER_ENDS])
def test_no_process_outlives_its_parent(split, tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    mode = end if isinstance(end, str) else "wait"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "UNETPP_TEST": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(split.path), mode],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    if not isinstance(end, str):
        process.send_signal(end)
    process.wait(30)
    process.stdout.close()

    def left() -> list[str]:
        mark = f"UNETPP_TEST={tmp_path}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and mark in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().decode())
            except OSError:
                continue
        return found

    wait_for(lambda: not left())  # torch's processes look after their parent every five seconds


def test_processes_come_from_a_server_that_runs_no_thread(split, open_loader):
    """A fork of this process would copy what its threads (torch's, Ray's) hold locked."""
    loader = open_loader(samples_of(split), 1)
    assert loader._loader.multiprocessing_context.get_start_method() in ("forkserver", "spawn")


def test_the_time_that_a_step_waited_is_known(split, open_loader):
    loader = open_loader(samples_of(split))
    list(loader.batches(SHARDS, 0))
    assert loader.waited_s > 0
    list(loader.batches([], 0))
    assert loader.waited_s < 0.1


@pytest.mark.parametrize("on_device", [False, True])
def test_further_crops_of_an_image_are_draws_of_their_own_and_the_first_is_that_of_before(split, on_device):
    samples = samples_of(split, on_device)
    first, second, third, again = (samples.make(number, 2) for number in (4, 4 + NUM, 4 + 2 * NUM, 4 + NUM))
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(second[0], third[0])
    assert all(np.array_equal(one, other) for one, other in zip(second, again, strict=True))
    assert find_sample(split, 4, 2, 7) == (4, (7, 2, "cell 4"))
    assert find_sample(split, 4 + NUM, 2, 7) == (4, (7, 2, 1, "cell 4"))
