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
from pipelines.node_cache import find_file
from pipelines.params import Params
from pipelines.sections import Model, Train
from unetpp.augment import Augment
from unetpp.checkpoint import newest_checkpoint, save_checkpoint
from unetpp.crops import Crops
from unetpp.data import Split, read_manifest
from unetpp.device_augment import RawSamples, augment_batches
from unetpp.errors import UserError
from unetpp.inference import Segmenter
from unetpp.loader import AugmentedSamples, Loader
from unetpp.loop import (
    choose_precision,
    epoch_order,
    make_loss,
    make_optimizer,
    plain_batches,
    schedule,
    train_epoch,
    validate,
)
from unetpp.losses import balanced_weights
from unetpp.model import NestedUNet


def make_settings(params: Params, widths: Sequence[int], prepared: Path, shared: dict | None = None) -> dict[str, Any]:
    """All that decides a training, as plain values: the sections of params that it reads, widths, prepared data.

    Args:
        shared: where other machines find the data (`pipelines.node_cache.share`); None reads them in `prepared`.

    Raises:
        UserError: no prepared data, or ones whose class weights are asked for and not known.
    """
    used = params.model_dump(mode="json", include={"model", "train", "augment"})
    manifest = read_manifest(prepared)
    return {
        "params": used,
        "widths": list(widths),
        "prepared": str(prepared.absolute()),
        "manifest": manifest,
        "class_weights": find_class_weights(params.train.class_weights, manifest, prepared),
        "shared": shared,
    }


def open_splits(settings: dict[str, Any]) -> tuple[Split, Split]:
    """The splits train and val: of the prepared folder, or of this node's cache."""
    if settings["shared"] is None:
        paths = [Path(settings["prepared"]) / f"{split}.arrow" for split in ("train", "val")]
    else:
        paths = [find_file(settings["shared"], split) for split in ("train", "val")]
    return Split(paths[0]), Split(paths[1])


def build_network(model: Model, widths: list[int], manifest: dict) -> NestedUNet:
    """The network of section `model`, with these widths, for the prepared data of a manifest."""
    data = {key: manifest[key] for key in ("num_classes", "multilabel")}
    return NestedUNet(widths, manifest["channels"], **data, **model.model_dump())


def epochs(
    settings: dict[str, Any], device: torch.device, state: dict, rank: int = 0, world: int = 1
) -> Iterator[dict]:
    """Train, and yield the state after each epoch; it is all that a later call needs to go on from there.

    Args:
        settings: what `make_settings` returns; with "init" ({"file", "sha256"}) a training begins with the weights of
            that file.
        state: {} to begin, or one that was yielded before.
        rank, world: this process's number, and how many there are; torch.distributed is set up if several.

    Yields:
        {"epoch", "weights", "optimizer", "history": a row an epoch, "best": {"epoch", "val_iou", "weights"}}.
        When the loss is no longer finite, a last one that also has "diverged": the epoch.
    """
    params = settings["params"]
    model, train = Model.model_validate(params["model"]), Train.model_validate(params["train"])
    manifest = settings["manifest"]
    torch.set_num_threads(train.cpus_per_worker)
    dtype = choose_precision(train.precision, device)
    train_split, val_split = open_splits(settings)

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
    elif settings.get("init"):
        network.load_state_dict(torch.load(settings["init"]["file"], map_location="cpu", weights_only=True))
    segmenter = Segmenter(network)
    wrapped = network
    if world > 1:
        wrapped = DistributedDataParallel(
            network,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Else rank 0's running statistics would replace those of the others before each step, and their mean
            # (`average_statistics`) would know rank 0's images alone.
            broadcast_buffers=False,
        )
    weights = settings["class_weights"]
    class_weights = None if weights is None else torch.tensor(weights, device=device)
    loss = make_loss(train.loss, train.head_weights, network.depths, class_weights, network.multilabel)
    on_device = params["augment"]["on_device"]
    loader = make_loader(train, params["augment"], train_split, manifest["channels"], device)

    # Few images: one batch holds them all, in shards of equal size.
    batch_size = min(train.batch_size, len(train_split) // world * world)
    steps = len(train_split) // batch_size
    rate = schedule(train.learning_rate, train.warmup_epochs * steps, train.epochs * steps)

    def begin(epoch: int) -> Iterator:
        """The batches of an epoch, the first ones on their way."""
        order = epoch_order(len(train_split), train.seed, epoch)
        shards = [order[s * batch_size : (s + 1) * batch_size][rank::world] for s in range(steps)]
        batches = loader.batches(shards, epoch)
        return augment_batches(batches, device) if on_device else batches

    try:
        batches = begin(len(history)) if len(history) < train.epochs else iter(())
        for epoch in range(len(history), train.epochs):
            began = time.monotonic()
            # Dropout draws from (seed, epoch, rank), so that a resumed training draws as an uninterrupted one.
            torch.manual_seed(int(np.random.SeedSequence((train.seed, epoch, rank)).generate_state(1)[0]))
            done = train_epoch(wrapped, batches, optimizer, rate, epoch * steps, device, dtype, loss)
            if world > 1:
                average_statistics(network, world)
            trained = time.monotonic() - began
            waited_s = loader.waited_s
            if epoch + 1 < train.epochs:
                batches = begin(epoch + 1)  # while validation runs
            shard = range(rank, len(val_split), world)
            whole = plain_batches(val_split, shard, train.batch_size)
            sums = validate(segmenter, whole, dtype, class_weights, train.loss)
            totals = torch.cat([done.view(1, 2), sums])
            if world > 1:  # Counts are added over the processes first and divided after.
                dist.all_reduce(totals)
            row = _row(epoch, totals, network.depths, rate(epoch * steps + steps - 1))
            row["images_per_s"] = round(steps * batch_size / trained, 2)
            row["data_wait_share"] = round(waited_s / trained, 4)  # of this process, see Loader
            history.append(row)
            if row["val_iou"] > best["val_iou"]:
                best = {"epoch": epoch, "val_iou": row["val_iou"], "weights": _on_cpu(network.state_dict())}
            state = {"epoch": epoch + 1, "history": history, "best": best}
            if not torch.isfinite(totals).all():  # the same totals everywhere, so that all processes stop together
                yield state | {"diverged": epoch}
                return
            yield state | {"weights": network.state_dict(), "optimizer": optimizer.state_dict()}
    finally:
        loader.close()


def average_statistics(network: NestedUNet, world: int) -> None:
    """Make the running statistics of batch norm, of which each process has its own, the mean over all processes."""
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            dist.all_reduce(buffer)
            buffer /= world


def find_class_weights(wanted: str | Sequence[float] | None, manifest: dict, prepared: Path) -> list[float] | None:
    """What `train.class_weights` asks for: max(2, num_classes) weights, or None.

    Raises:
        UserError: the manifest of the prepared data does not say how many pixels each class has.
    """
    if wanted is None:
        return None
    if wanted != "balanced":
        return [float(one) for one in wanted]
    if "class_pixels" not in manifest:
        raise UserError(
            f"{prepared}/manifest.json: found no class_pixels, by which train.class_weights=balanced weighs; run "
            "`dvc repro prepare` with this version, or give the weights themselves"
        )
    pixels = list(manifest["class_pixels"])
    return balanced_weights(pixels + [0] * (max(2, manifest["num_classes"]) - len(pixels)))


def make_loader(train: Train, augment: dict[str, Any], split: Split, channels: int, device: torch.device) -> Loader:
    """The training batches of a split, as the sections `train` and `augment` of params want them."""
    limits = {key: augment[key] for key in ("flips", "brightness", "hue")} | {"channels": channels}
    crops = Crops(train.crop_px, train.foreground_crops)
    if augment["on_device"]:
        samples = RawSamples(split, crops, train.seed, **limits)
    else:
        samples = AugmentedSamples(split, Augment(crops, **limits), train.seed)
    return Loader(samples, train.loader_workers, pin_memory=device.type == "cuda")


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


def best_so_far(history: list[dict]) -> dict[str, float]:
    """The best val IoU of each depth over the epochs, and that of the best depth, named "best_val_iou"."""
    names = [key for key in history[0] if key.startswith("val_iou_L")]
    best = {f"best_{name}": max(row[name] for row in history) for name in names}
    return best | {"best_val_iou": max(best.values())}


def describe(row: dict[str, Any], num_epochs: int) -> str:
    """An epoch in one line."""
    ious = "  ".join(f"{key.removeprefix('val_iou_')} {value:.4f}" for key, value in row.items() if "iou_L" in key)
    return (
        f"epoch {row['epoch']}/{num_epochs}  loss {row['train_loss']:.4f}  val IoU {ious}  "
        f"{row['images_per_s']:.0f} images/s  waited for data {row['data_wait_share']:.1%}"
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
    if problem := _any_problem(settings, world):
        return problem
    num_epochs = settings["params"]["train"]["epochs"]
    for after in epochs(settings, ray.train.torch.get_device(), state, rank, world):
        row = after["history"][-1]
        if "diverged" in after:
            return (
                f"the loss is not finite any more in epoch {row['epoch']}: {json.dumps(row)}; a lower "
                "train.learning_rate or a longer warm-up may help"
            )
        reported = row | best_so_far(after["history"])
        if rank > 0:
            ray.train.report(reported)
            continue
        print(describe(row, num_epochs), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), after)
            ray.train.report(reported, checkpoint=ray.train.Checkpoint.from_directory(folder))
    return None


def _any_problem(settings: dict[str, Any], world: int) -> str | None:
    """What keeps the data of any process from being read, the same in all: none waits for one that gave up."""
    problem = None
    try:
        open_splits(settings)
    except UserError as error:
        problem = str(error)
    problems = [problem]
    if world > 1:
        problems = [None] * world
        dist.all_gather_object(problems, problem)
    return next((one for one in problems if one), None)


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
    manifest = settings["manifest"]
    package = Path(unetpp.__file__).parent
    code = [sha256(file) for file in (*sorted(package.glob("*.py")), Path(__file__))]
    facts = [settings["params"], settings["widths"], manifest["splits"], code]
    if settings.get("init"):
        facts.append(settings["init"]["sha256"])
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{stage}-{digest[:16]}"
