"""What every training process runs: the loop, told which shard of each batch is its own.

`epochs` is the training itself, for one process or for one of several; `train_worker` is its form for
Ray Train. This is the one file that imports ray.train.
"""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import unetpp
from pipelines.files import sha256
from pipelines.params import Model, Params, Train
from unetpp.augment import Augment
from unetpp.checkpoint import newest_checkpoint, save_checkpoint
from unetpp.data import Split, read_manifest
from unetpp.inference import Segmenter
from unetpp.loop import (
    choose_precision,
    epoch_order,
    make_loss,
    make_optimizer,
    plain_batches,
    schedule,
    train_batches,
    train_epoch,
    validate,
)
from unetpp.model import NestedUNet


def make_settings(params: Params, widths: Sequence[int], prepared: Path) -> dict[str, Any]:
    """All that decides a training, as plain values: the sections of params that it reads, widths, prepared data."""
    used = params.model_dump(mode="json", include={"model", "train", "augment"})
    return {"params": used, "widths": list(widths), "prepared": str(prepared.absolute())}


def build_network(model: Model, widths: Sequence[int], manifest: dict) -> NestedUNet:
    """The network of section `model`, with these widths, for the prepared data of a manifest."""
    data = {key: manifest[key] for key in ("num_classes", "multilabel")}
    return NestedUNet(widths, manifest["channels"], **data, **model.model_dump())


def epochs(
    settings: dict[str, Any], device: torch.device, state: dict, rank: int = 0, world: int = 1
) -> Iterator[dict]:
    """Train, and yield the state after each epoch; it is all that a later call needs to go on from there.

    Args:
        settings: what `make_settings` returns.
        state: {} to begin, or one that was yielded before.
        rank, world: this process's number, and how many there are; torch.distributed is set up if several.

    Yields:
        {"epoch", "weights", "optimizer", "history": a row an epoch, "best": {"epoch", "val_iou", "weights"}}.
        When the loss is no longer finite, a last one that also has "diverged": the epoch.
    """
    params = settings["params"]
    model, train = Model.model_validate(params["model"]), Train.model_validate(params["train"])
    prepared = Path(settings["prepared"])
    manifest = read_manifest(prepared)
    torch.set_num_threads(train.cpus_per_worker)
    dtype = choose_precision(train.precision, device)
    train_split, val_split = Split(prepared / "train.arrow"), Split(prepared / "val.arrow")

    torch.manual_seed(train.seed)
    network = build_network(model, settings["widths"], manifest)
    network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(network, train.optimizer, train.learning_rate, train.momentum, train.weight_decay)
    history: list[dict] = []
    best: dict[str, Any] = {"epoch": 0, "val_iou": -1.0, "weights": {}}
    if state:
        network.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        history, best = state["history"], state["best"]
    segmenter = Segmenter(network)
    wrapped = network
    if world > 1:
        wrapped = DistributedDataParallel(
            network,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    loss = make_loss(train.loss, train.head_weights, network.depths, network.multilabel)
    augment = Augment(train.crop_px, **params["augment"], channels=manifest["channels"])

    # Few images: one batch holds them all, in shards of equal size.
    batch_size = min(train.batch_size, len(train_split) // world * world)
    steps = len(train_split) // batch_size
    rate = schedule(train.learning_rate, train.warmup_epochs * steps, train.epochs * steps)

    for epoch in range(len(history), train.epochs):
        began = time.monotonic()
        order = epoch_order(len(train_split), train.seed, epoch)
        shards = [order[s * batch_size : (s + 1) * batch_size][rank::world] for s in range(steps)]
        batches = train_batches(train_split, shards, augment, train.seed, epoch)
        # Dropout draws from (seed, epoch, rank), so that a resumed training draws as an uninterrupted one.
        torch.manual_seed(int(np.random.SeedSequence((train.seed, epoch, rank)).generate_state(1)[0]))
        done = train_epoch(wrapped, batches, optimizer, rate, epoch * steps, device, dtype, loss)
        if world > 1:  # Each process has its own running means of batch norm; rank 0's are the network's.
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)
        trained = time.monotonic() - began
        sums = validate(
            segmenter, plain_batches(val_split, range(rank, len(val_split), world), train.batch_size), dtype, train.loss
        )
        totals = torch.cat([done.view(1, 2), sums])
        if world > 1:  # Counts are added over the processes first and divided after.
            dist.all_reduce(totals)
        row = _row(epoch, totals, network.depths, rate(epoch * steps + steps - 1))
        row["images_per_s"] = round(steps * batch_size / trained, 2)
        history.append(row)
        if row["val_iou"] > best["val_iou"]:
            best = {"epoch": epoch, "val_iou": row["val_iou"], "weights": _on_cpu(network.state_dict())}
        state = {"epoch": epoch + 1, "history": history, "best": best}
        if not torch.isfinite(totals).all():  # the same totals everywhere, so that all processes stop together
            yield state | {"diverged": epoch}
            return
        yield state | {"weights": network.state_dict(), "optimizer": optimizer.state_dict()}


def _row(epoch: int, totals: Tensor, depths: tuple[int, ...], learning_rate: float) -> dict[str, Any]:
    """The numbers of an epoch, from the sums over all processes: (2 + num_heads, 2), see `train_epoch`, `validate`."""
    train_loss = (totals[0, 0] / totals[0, 1]).item()
    means = (totals[1:-1] / totals[-1]).tolist()
    row: dict[str, Any] = {"epoch": epoch + 1, "train_loss": train_loss, "learning_rate": learning_rate}
    for depth, (loss, iou) in zip(depths, means, strict=True):
        row[f"val_loss_L{depth}"], row[f"val_iou_L{depth}"] = loss, iou
    row["val_iou"] = sum(iou for _, iou in means) / len(means)  # every depth is to be good
    return row


def _on_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in weights.items()}


def describe(row: dict[str, Any], num_epochs: int) -> str:
    """An epoch in one line."""
    ious = "  ".join(f"{key.removeprefix('val_iou_')} {value:.4f}" for key, value in row.items() if "iou_L" in key)
    return (
        f"epoch {row['epoch']}/{num_epochs}  loss {row['train_loss']:.4f}  val IoU {ious}  "
        f"{row['images_per_s']:.0f} images/s"
    )


def train_worker(settings: dict[str, Any]) -> str | None:
    """One process of a Ray Train run: resumes from the run's newest whole checkpoint, reports after each epoch.

    Returns:
        None, or why the training stopped for good; an exception would be tried again by Ray.
    """
    import ray.train
    import ray.train.torch

    logging.getLogger().setLevel("WARNING")  # else every report is printed whole, by every rank
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    checkpoint = ray.train.get_checkpoint()
    state: dict = {}
    if checkpoint:
        # The run's folder, and not this one checkpoint: should it be torn, the one before is taken.
        state, passed_over = newest_checkpoint(Path(checkpoint.path).parent)
        if rank == 0:
            for line in passed_over:
                print(f"passed over: {line}", flush=True)
            print(f"goes on after epoch {state.get('epoch', 0)}", flush=True)
    num_epochs = settings["params"]["train"]["epochs"]
    for after in epochs(settings, ray.train.torch.get_device(), state, rank, world):
        row = after["history"][-1]
        if "diverged" in after:
            return f"the loss is not finite any more in epoch {row['epoch']}: {json.dumps(row)}"
        if rank > 0:
            ray.train.report(row)
            continue
        print(describe(row, num_epochs), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), after)
            ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder))
    return None


def run_on_ray(settings: dict[str, Any], name: str, runs: Path, callbacks: list | None = None) -> str | None:
    """Train with Ray Train by params alone: processes, threads, GPUs, restarts. A run of the same name goes on.

    Checkpoints are kept in `runs / name`, the newest two.

    Returns:
        what `train_worker` returned.
    """
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    train = settings["params"]["train"]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=train["num_workers"],
            use_gpu=train["use_gpu"],
            resources_per_worker={"CPU": train["cpus_per_worker"]} | ({"GPU": 1} if train["use_gpu"] else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(runs.absolute()),
            failure_config=FailureConfig(max_failures=train["max_failures"], controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        torch_config=TorchConfig(backend="nccl" if train["use_gpu"] else "gloo", timeout_s=train["timeout_s"]),
    )
    return trainer.fit().return_value


def run_name(stage: str, settings: dict[str, Any]) -> str:
    """A run's name: a hash of params, widths, data and code, so that only the very same training is ever resumed."""
    manifest = read_manifest(Path(settings["prepared"]))
    package = Path(unetpp.__file__).parent
    code = [sha256(file) for file in (*sorted(package.glob("*.py")), Path(__file__))]
    facts = [settings["params"], settings["widths"], manifest["splits"], code]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{stage}-{digest[:16]}"
