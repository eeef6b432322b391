"""Train on your own images in a notebook: the training of the pipeline, with only torch and numpy."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import Tensor

from unetpp.data.crops import Crops
from unetpp.data.device_augment import RawSamples, augment_batches
from unetpp.data.loader import Loader
from unetpp.data.symmetries import Flips
from unetpp.data.targets import CropsWithTargets, Numbered, WithTargets
from unetpp.engines.engine import missing
from unetpp.errors import UserError
from unetpp.models.model_file import Trained
from unetpp.models.segmenter import Segmenter
from unetpp.network.losses import LOSSES
from unetpp.network.masks import MASK
from unetpp.network.model import NestedUNet
from unetpp.training.batch_norm import STATISTICS_IMAGES, find_batch_norms, recompute_statistics, reset_statistics
from unetpp.training.choice import steady
from unetpp.training.ema import Ema
from unetpp.training.loop import (
    OPTIMIZERS,
    PRECISIONS,
    Batch,
    choose_precision,
    cut_epoch,
    encoder_share,
    epoch_order,
    make_loss,
    make_optimizer,
    make_scaler,
    plain_batches,
    schedule,
    step_seed,
    train_steps,
    validate,
)
from unetpp.training.pairs import Dataset, Whole, read_dataset
from unetpp.training.separation import choose_separations
from unetpp.training.step import NonFiniteError, TrainStep
from unetpp.training.user_loss import check_weights, own_loss


@dataclass(frozen=True)
class Epoch:
    """What `fit` reports after each epoch.

    Attributes:
        epoch: the number of the epoch, counted from 1.
        epochs: how many epochs are planned.
        loss: mean over the training images of the epoch, measured during its steps.
        val_iou: foreground IoU on `val` by depth, from 0 to 1; empty without `val`.
        network: the network in its present state; training continues with this object.
    """

    epoch: int
    epochs: int
    loss: float
    val_iou: Mapping[int, float] = field(default_factory=dict)
    network: NestedUNet = field(repr=False, kw_only=True)

    def __str__(self) -> str:
        ious = ", ".join(f"L{depth} {iou:.3f}" for depth, iou in self.val_iou.items())
        return f"epoch {self.epoch} of {self.epochs}: loss {self.loss:.4f}" + (f", val IoU {ious}" if ious else "")


def fit(
    network: NestedUNet | Trained,
    dataset: Dataset,
    val: Dataset | None = None,
    *,
    epochs: int = 20,
    batch_size: int = 8,
    crop_px: int | None = None,
    foreground_crops: float = 0.0,
    crops_per_image: int = 1,
    flips: Flips = "all",
    quarter_turns: bool = True,
    brightness: float = 0.2,
    hue: int = 10,
    loss: str | Callable[[tuple[Tensor, ...], Tensor], Tensor] = "ce_dice",
    head_weights: str | Sequence[float] = "mean",
    class_weights: Sequence[float] | None = None,
    optimizer: str = "adamw",
    learning_rate: float = 3e-3,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup_epochs: int = 2,
    encoder_lr: float = 1.0,
    freeze_encoder_epochs: int = 0,
    ema: float | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
    precision: str = "auto",
    seed: int = 0,
    device: str | torch.device | None = None,
    classes: Sequence[str] | None = None,
    after_epoch: Callable[[Epoch], Any] | None = print,
) -> Trained:
    """Train a network, and return it as of the best epoch on `val`, or of the last epoch without `val`.

        trained = unetpp.fit(unetpp.NestedUNet((8, 16, 32, 64)), (images, masks), (val_images, val_masks))
        mask = unetpp.Predictor(trained, depth=2).mask(image)
        trained.save("model.safetensors")

    This is the training of `dvc repro train`, with the same settings as the sections train and augment of params.yaml:
    the same data and network give the same weights. On a CPU, repeating a call gives the same bits.

    Args:
        network: the network to begin with; it is copied and not changed. A trained network is fine-tuned
            (`unetpp.transfer` first, for other classes).
        dataset: a sequence of (image, mask) pairs, such as a torch Dataset, or a tuple (images, masks); see
            `unetpp.training.pairs.Pairs` for shapes and types. Or a prepared `unetpp.data.arrow_split.Split`.
        val: the same, with images that are not trained on.
        crop_px: side of random square crops; None trains on whole images.
        foreground_crops: share of the crops that must contain foreground, from 0 to 1.
        flips: "none", "horizontal", "vertical" or "all"; quarter turns need square images, or crops.
        brightness: limit of brightness and contrast changes, in standard deviations of the image; 0 for none.
        hue: limit of the hue shift in units of 2 degrees; 0 for none.
        loss: "ce_dice", "focal_dice", "lovasz", "tversky", or a function that takes the logits of all heads, each
            (N, num_outputs, H, W), and the mask (N, H, W), and returns the loss of each image (N,), or the mean. For a
            network with further targets `unetpp.network.targets.part` splits the mask into its parts.
        class_weights: max(2, num_classes) weights of the cross-entropy, for losses that have one.
        encoder_lr: the learning rate of an encoder as a share of `learning_rate`; in the first `freeze_encoder_epochs`
            epochs an encoder is not trained.
        ema: decay of the moving average of the weights; None for none.
        clip_norm: maximum gradient norm; None for no limit.
        accumulate: number of parts in which a batch is computed, to use less memory.
        device: such as "cuda"; by default the device of the network.
        classes: names of the classes, stored with the result.
        after_epoch: called with each `Epoch`; if it returns True, training ends. Prints by default; None prints
            nothing.

    Returns:
        the trained network; `info` has the epoch and its val IoU.

    Raises:
        UserError: illegal settings, images and masks that do not fit the network, or a non-finite loss.
    """
    for name, value, legal in (
        ("loss", loss, LOSSES),
        ("optimizer", optimizer, OPTIMIZERS),
        ("precision", precision, PRECISIONS),
        ("flips", flips, get_args(Flips)),
    ):
        if value not in legal and not callable(value):
            raise UserError(f"{name}: found {value!r}; expected one of {', '.join(legal)}")
    for name, value in (
        ("epochs", epochs),
        ("batch_size", batch_size),
        ("accumulate", accumulate),
        ("crops_per_image", crops_per_image),
    ):
        if value < 1:
            raise UserError(f"{name}: found {value}; expected at least 1")
    source = network if isinstance(network, Trained) else Trained(network, None)
    if not isinstance(source.network, NestedUNet):
        raise UserError(
            f"fit: found a network of type {type(network).__name__}; expected a NestedUNet, or what unetpp.load returns"
        )
    if source.network.norm == "none":
        raise UserError(
            "fit: found a network whose batch norm was folded away, as in exported and registered models; expected the "
            "network of a training run: unetpp.load('models/train')"
        )
    none = source.network.encoder is None
    if not 0 < encoder_lr <= 1 or freeze_encoder_epochs < 0 or (none and (encoder_lr, freeze_encoder_epochs) != (1, 0)):
        raise UserError(
            f"encoder_lr: found {encoder_lr}, and freeze_encoder_epochs {freeze_encoder_epochs}; expected a share "
            f"above 0 and at most 1, and a number of epochs{': leave both out, as there is no encoder' if none else ''}"
        )
    place = torch.device(device or next(source.network.parameters()).device)
    network = copy.deepcopy(source.network).requires_grad_().to(place)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if crop_px is not None and crop_px % 2**network.depth:
        raise UserError(
            f"crop_px: found {crop_px}; a network of depth {network.depth} trains on sides divisible by "
            f"{2**network.depth}: {-(-crop_px // 2**network.depth) * 2**network.depth}"
        )
    whole = Whole(batch_size, quarter_turns) if crop_px is None else None
    train = read_dataset(dataset, network, "dataset", source.frame, whole)
    held_out = None if val is None else read_dataset(val, network, "val", source.frame)
    num = len(train) * crops_per_image
    sizes = cut_epoch(num, batch_size)
    dtype = choose_precision(precision, place)
    average = None if ema is None else Ema(network, ema)
    weights = None if class_weights is None else check_weights(class_weights, loss, network).to(place)
    step = TrainStep(
        network,
        make_optimizer(network, optimizer, learning_rate, momentum, weight_decay),
        own_loss(loss)
        if callable(loss)
        else make_loss(loss, head_weights, network.depths, weights, *network.task[1:], network.targets),
        place,
        dtype,
        accumulate=accumulate,
        clip_norm=clip_norm,
        ema=average,
        scaler=make_scaler(place, dtype),
        encoder_share=encoder_share(encoder_lr, freeze_encoder_epochs * len(sizes)),
    )
    crops = Crops(crop_px, foreground_crops, source.about.canvas)
    if network.targets != MASK:
        train, crops = Numbered(train), CropsWithTargets(crops, network.background)
        held_out = held_out and WithTargets(held_out, network.background)
    samples = RawSamples(
        train,
        crops,
        seed,
        flips=flips,
        quarter_turns=quarter_turns,
        brightness=brightness,
        hue=hue,
        channels=network.in_channels,
    )
    loader = Loader(samples)
    rate = schedule(learning_rate, warmup_epochs * len(sizes), epochs * len(sizes))
    result = average.network if average else network
    best, scores, taken = -1.0, [], {}
    info: dict[str, Any] = {"classes": list(classes) if classes else source.info.get("classes")}
    if source.sha256:
        info["init"] = {"sha256": source.sha256}
    with torch.random.fork_rng([place] if place.type == "cuda" else []):  # leaves the host's random state unchanged
        for epoch in range(epochs):
            shards = [part.tolist() for part in torch.tensor(epoch_order(num, seed, epoch)).split(sizes)]
            reset_statistics(network)
            loss_sums = _train(
                step, augment_batches(loader.batches(shards, epoch), place), rate, seed, epoch, shards, len(train)
            )
            if average and find_batch_norms(average.network):
                some = shards[: -(-STATISTICS_IMAGES // batch_size)]
                batches = augment_batches(loader.batches(some, epoch), place)
                recompute_statistics(average.network, batches, place, dtype)
            ious = (
                {}
                if held_out is None
                else _validate(Segmenter(result, canvas=source.about.canvas), held_out, batch_size, dtype)
            )
            scores.append(sum(ious.values()) / len(ious) if ious else float(epoch))
            score = steady(scores) if ious else float(epoch)
            if score > best:
                best = score
                info |= {"epoch": epoch + 1, "val_iou": {f"L{depth}": iou for depth, iou in ious.items()}}
                taken = {key: value.detach().cpu().clone() for key, value in result.state_dict().items()}
            told = Epoch(epoch + 1, epochs, (loss_sums[0] / loss_sums[1]).item(), ious, network=result)
            if after_epoch and after_epoch(told) is True:
                break
    result.load_state_dict(taken)
    trained = replace(source, network=result.requires_grad_(False).eval(), info=info, sha256=None)
    if network.targets != MASK and held_out is not None and not missing("skimage"):
        info["separation"] = choose_separations(trained, held_out.split, place)
    return trained


def _train(
    step: TrainStep,
    batches: Iterable[Batch],
    rate: Callable[[int], float],
    seed: int,
    epoch: int,
    shards: list[list[int]],
    num: int,
) -> Tensor:
    """Train one epoch of `num` images; returns (2,) float64: the sum of the losses of its samples, and their number."""
    first = epoch * len(shards)
    sums = torch.zeros(2, dtype=torch.float64, device=step.device)
    try:
        for done in train_steps(
            step, batches, rate, first, seeds=lambda number: step_seed(seed, epoch, number - first, 0)
        ):
            sums += done
    except NonFiniteError as error:
        batch = shards[error.step - first]
        images = (
            ", ".join(f"dataset[{batch[image] % num}]" for image in error.images) or "no one image, but their gradient"
        )
        raise UserError(
            f"non-finite loss in epoch {epoch + 1}: of {images}. A lower learning_rate, more "
            "warmup_epochs or clip_norm may help"
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "batch_size: found a batch whose deepest level is a single pixel, which norm layers cannot train on: use "
            "larger images or crops, fewer widths, or a larger batch_size (with norm batch)"
        ) from None
    return sums


def _validate(segmenter: Segmenter, pairs: Any, batch_size: int, dtype: torch.dtype) -> dict[int, float]:
    sums = validate(segmenter, plain_batches(pairs, range(len(pairs)), batch_size), dtype)
    ious = (sums[:-1, 1] / sums[-1, 1]).tolist()
    return dict(zip(segmenter.network.depths, ious, strict=True))
