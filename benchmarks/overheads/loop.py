"""The steady state: a plain torch loop and ours, alternately, alone and in a worker of Ray Train."""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.overheads.shipped_params import ROOT, make_params
from pipelines.cluster.ray_cluster import cluster
from pipelines.core.params import load_params
from pipelines.storage.places import Folder
from pipelines.storage.run_store import RunStore
from pipelines.training import ray_worker
from pipelines.training.batches import make_loader
from pipelines.training.epochs import epochs
from pipelines.training.spec import TrainSpec, make_spec
from pipelines.training.state import TrainState
from unetpp import NestedUNet
from unetpp.training.loop import choose_precision, epoch_order, make_loss, make_optimizer

CPU = torch.device("cpu")


def plain_epochs(spec: TrainSpec, num_epochs: int) -> Iterator[float]:
    """The loop that everybody writes, on the same network and batches; yields images a second of each epoch."""
    train = load_params(ROOT / "params.yaml").train
    torch.manual_seed(train.seed)
    network = NestedUNet(spec.widths).to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = make_optimizer(network, train.optimizer, 1e-3, train.momentum, train.weight_decay)
    loss, dtype = make_loss(train.loss, train.head_weights, network.depths), choose_precision(train.precision, CPU)
    split, _ = spec.open_splits()
    loader = make_loader(spec, split, CPU)
    size = spec.train.batch_size
    for epoch in range(num_epochs):
        order = epoch_order(len(split), train.seed, epoch)
        batches = loader.batches([order[at : at + size] for at in range(0, len(order), size)], epoch)
        network.train()
        began = time.monotonic()
        for image, mask in batches:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits = network(image.to(memory_format=torch.channels_last))
            total = loss(logits, mask).mean()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
        yield len(split) / (time.monotonic() - began)


def alternate(spec: TrainSpec, report) -> list[tuple[float, float]]:
    """(plain, ours) images a second of neighbouring epochs, without the first two of each."""
    torch.set_num_threads(spec.train.cpus_per_worker)
    plain, pairs = plain_epochs(spec, spec.train.epochs), []
    for state in epochs(spec, CPU):
        report(state)
        pairs.append((next(plain), state.history[-1]["images_per_s"]))
    return pairs[2:]


def alternate_in_ray(spec: TrainSpec, _run: RunStore) -> list[tuple[float, float]]:
    """The same in a worker of Ray Train."""
    import ray.train

    logging.getLogger().setLevel("WARNING")  # else every report is printed whole

    from unetpp.training.checkpoint import save_checkpoint

    def report(state: TrainState) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), state.to_dict())
            ray.train.report(state.history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))

    return alternate(spec, report)


def read_loop(prepared: Path, folder: Path, widths: list[int], num_epochs: int) -> list[str]:
    spec = make_spec(make_params(1, 1, num_epochs), widths, prepared)
    alone = alternate(spec, lambda _state: None)
    ray_worker.train_worker = alternate_in_ray  # pyright: ignore[reportAttributeAccessIssue]
    with cluster():
        in_ray: Any = ray_worker.run_on_ray(spec, "loop", RunStore(Folder(folder / "loop")))
    lines = [
        f"Steps of 8 images of 96x96, widths {', '.join(map(str, widths))}, one thread, {len(alone)} pairs of epochs:",
        "",
        "| images/s, median | plain loop | ours | ours / plain, median of pairs | quartiles of the pairs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, pairs in (("this process alone", alone), ("a worker of Ray Train", in_ray)):
        plain, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
        low, middle, high = statistics.quantiles([mine / other for other, mine in pairs], n=4)
        lines.append(f"| {name} | {plain:.1f} | {ours:.1f} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    return [*lines, ""]
