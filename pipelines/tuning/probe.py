"""What a search will take, before it starts: a few steps of its largest and its smallest trial on this hardware."""

import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.core.training_sections import Model, Train
from pipelines.training.batches import make_loader
from pipelines.training.spec import build_network, open_splits
from pipelines.tuning.candidate_costs import Costs, key_of
from pipelines.tuning.space import Config, Space, decode
from pipelines.tuning.trials import settings_of
from unetpp.data.device_augment import augment_batches
from unetpp.inference.segmenter import Segmenter
from unetpp.training.loop import choose_precision, make_loss, make_optimizer, plain_batches, train_epoch, validate

STEPS = 2  # that are timed, after one that is not
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
            f"{self.num_trials} trials, {self.at_once} at once: about {took} of training by a probe of its extremes, "
            f"beside the start of processes, and {self.memory_mib:,.0f} MiB for the largest process"
        )


def probe(settings: dict[str, Any]) -> dict[str, float]:
    """A few steps of a training in this process: seconds of a step and of a validated image, the peak of memory.

    Returns:
        {"step_s", "image_s", "memory_mib"}; the memory is the whole process's, or a GPU's.
    """
    params, manifest = settings["params"], settings["manifest"]
    model, train = Model.model_validate(params["model"]), Train.model_validate(params["train"])
    device = torch.device("cuda" if train.use_gpu else "cpu")
    torch.set_num_threads(train.cpus_per_worker)
    torch.manual_seed(train.seed)
    dtype = choose_precision(train.precision, device)
    train_split, val_split = open_splits(settings)
    network = build_network(model, settings["widths"], manifest)
    network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(network, train.optimizer, train.learning_rate, train.momentum, train.weight_decay)
    loss = make_loss(train.loss, train.head_weights, network.depths, None, network.multilabel)
    size = max(1, min(train.batch_size, len(train_split)) // train.max_workers)
    in_line = train.model_copy(update={"loader_workers": 0})
    loader = make_loader(in_line, params["augment"], train_split, manifest.channels, device)

    def steps(num: int) -> float:
        batches = loader.batches([list(range(size))] * num, 0)
        batches = augment_batches(batches, device) if params["augment"]["on_device"] else batches
        began = time.perf_counter()
        train_epoch(network, batches, optimizer, lambda step: 0.0, 0, device, dtype, loss)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - began) / num

    try:
        _clear_peak(device)
        steps(1)
        step_s = steps(STEPS)
        seen = min(len(val_split), size)
        began = time.perf_counter()
        validate(Segmenter(network), plain_batches(val_split, range(seen), size), dtype, None, train.loss)
        image_s = (time.perf_counter() - began) / seen
    finally:
        loader.close()
    return {"step_s": step_s, "image_s": image_s, "memory_mib": _peak_mib(device)}


def estimate(space: Space, settings: dict, costs: Costs, at_once: int, run=probe) -> Estimate:
    """Time and memory of the search, from a probe of the trials that compute most and least in a step.

    Args:
        run: `probe`, or what runs it on a machine of the cluster.
    """
    configs = space.configs() or space.draw(space.num_trials(), space.params.search.seed)
    num_train, num_val = (settings["manifest"].splits[name].num_images for name in ("train", "val"))

    def work(config: Config) -> float:
        return max(row["macs"] for row in costs[key_of(space, config)].values()) * _batch(space, config)

    ordered = sorted(configs, key=work)
    probed = [(work(one), run(settings_of(settings, space.params, one))) for one in (ordered[0], ordered[-1])]
    (low, least), (high, most) = probed
    total = 0.0
    for config in configs:
        share = (work(config) - low) / (high - low) if high > low else 1.0
        step_s, image_s = (least[key] + share * (most[key] - least[key]) for key in ("step_s", "image_s"))
        steps = max(1, num_train // _batch(space, config))
        total += steps * step_s + num_val * image_s / space.params.search.num_workers
    total *= space.params.search.epochs / at_once
    return Estimate(len(configs), at_once, total, max(one["memory_mib"] for _, one in probed))


def _batch(space: Space, config: Config) -> int:
    return decode(config).get("train.batch_size", space.params.train.batch_size)


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
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes
