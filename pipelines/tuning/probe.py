"""What a search will take, before it starts: a few steps of its largest and its smallest trial on this hardware."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch

from pipelines.console.progress import watched
from pipelines.training.batches import Batches
from pipelines.training.setup import Setup
from pipelines.training.spec import TrainSpec
from pipelines.tuning.candidate_costs import Costs, check_memory, key_of
from pipelines.tuning.space import Candidate, Space
from pipelines.tuning.trials import spec_of
from unetpp.errors import UserError
from unetpp.models.segmenter import Segmenter
from unetpp.training.loop import plain_batches, train_epoch, validate
from unetpp.training.memory import peak_memory_mib

STEPS = 2  # that are timed, after as many that are not
CLEAR_PEAK = "/proc/self/clear_refs"


@dataclass(frozen=True)
class Estimate:
    """Of a whole search."""

    num_trials: int
    at_once: int
    seconds: float
    memory_mib: float  # of the largest trial's process

    def __str__(self) -> str:
        took = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min"
        took = f"{self.seconds / 3600:.1f} h" if self.seconds >= 5400 else took
        return (
            f"{self.num_trials} trials, {self.at_once} at once: about {took} of training by a timed trial, plus "
            f"start-up; the largest process takes {self.memory_mib:,.0f} MiB"
        )


@dataclass(frozen=True)
class Probe:
    """A few steps of a training: seconds of a step and of a validated image, the peak of memory of the process."""

    step_s: float
    image_s: float
    memory_mib: float  # the whole process's, or a GPU's


def probe(spec: TrainSpec, clock: Callable[[], float] = time.perf_counter) -> Probe:
    """A few steps of a training in this process, as of one of its workers.

    Args:
        clock: in seconds; `time.process_time` does not count what other processes took of the machine.
    """
    device = torch.device("cuda" if spec.train.use_gpu else "cpu")
    in_line = spec.train.model_copy(update={"loader_workers": 0})
    setup = Setup(spec, device)
    batches = Batches(replace(spec, train=in_line), setup.train_split, device, 0, spec.train.max_workers)
    num = min(STEPS, len(batches.sizes))

    def steps() -> float:
        began = clock()
        ready = batches.begin(0, last=num)
        train_epoch(setup.network, ready, setup.optimizer, lambda _step: 0.0, 0, device, setup.dtype, setup.loss)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (clock() - began) / num

    try:
        _clear_peak(device)
        steps()  # not timed
        step_s = steps()
        size = len(batches.shards(0)[0])
        seen = min(len(setup.val_split), size)
        began = clock()
        images = plain_batches(setup.val_split, range(seen), size)
        validate(Segmenter(setup.network, canvas=setup.canvas), images, setup.dtype, None, spec.train.loss)
        image_s = (clock() - began) / seen
    finally:
        batches.close()
    return Probe(step_s, image_s, _peak_mib(device))


def estimate(space: Space, spec: TrainSpec, costs: Costs, at_once: int, run: Callable[[TrainSpec], Probe]) -> Estimate:
    """Time and memory of the search, from a probe of the trials that compute most and least in a step.

    Args:
        run: `probe`, or what runs it on a machine of the cluster.
    """
    num_train, num_val = (spec.manifest.splits[name].num_images for name in ("train", "val"))

    def work(one: Candidate) -> float:
        return max(row["macs"] for row in costs[key_of(one)].values()) * one.params.train.batch_size

    ordered = sorted(space.candidates, key=work)
    low, high = work(ordered[0]), work(ordered[-1])
    extremes = watched((ordered[0], ordered[-1]), "probing the smallest and the largest trial")
    least, most = (run(spec_of(one, spec)) for one in extremes)
    total = 0.0
    for one in space.candidates:
        share = (work(one) - low) / (high - low) if high > low else 1.0
        step_s = least.step_s + share * (most.step_s - least.step_s)
        image_s = least.image_s + share * (most.image_s - least.image_s)
        steps = max(1, num_train * one.params.train.crops_per_image // one.params.train.batch_size)
        total += steps * step_s + num_val * image_s / space.params.search.num_workers
    total *= space.params.search.epochs / at_once
    return Estimate(len(space.candidates), at_once, total, max(least.memory_mib, most.memory_mib))


def announce(space: Space, spec: TrainSpec, costs: Costs, at_once: int) -> str:
    """What the search will take, by a probe on the connected cluster; refuses one that its memory cannot hold.

    Raises:
        UserError: with what it needs and what there is.
    """
    import ray

    search, use_gpu = space.params.search, space.params.train.use_gpu
    run, there = probe, psutil.virtual_memory().available / 2**20
    if "RAY_ADDRESS" in os.environ or use_gpu:
        remote = ray.remote(num_cpus=search.cpus_per_worker, num_gpus=int(use_gpu))(probe)

        def run(spec: TrainSpec) -> Probe:
            return ray.get(remote.remote(spec))

        nodes = [node["Resources"].get("memory", 0) / 2**20 for node in ray.nodes() if node["Alive"]]
        there = sum(nodes)
        if not use_gpu:
            check_memory(space, spec.manifest, max(nodes), "the largest machine of the cluster")
    found = estimate(space, spec, costs, at_once, run)
    processes = at_once * search.num_workers
    if not use_gpu and found.memory_mib * processes > there:
        what, advice = f"search.max_concurrent = {at_once}", "lower search.max_concurrent"
        if search.scheduler == "pbt":
            what, advice = f"search.scheduler pbt, {at_once} trials at once", "raise search.cpus_per_worker"
        raise UserError(
            f"{what}: {processes} processes of {found.memory_mib:,.0f} MiB, as a probe of the largest took, need more "
            f"than the {there:,.0f} MiB that are free: {advice}"
        )
    hours = search.max_hours
    limit = f"; search.max_hours ends it after {hours:g} h with the best so far" if hours else ""
    return f"search: {found}{limit}"


def _clear_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(CLEAR_PEAK, os.W_OK):
        with open(CLEAR_PEAK, "w") as file:
            file.write("5")


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # macOS
        return peak_memory_mib(device)
