"""The training loop in plain torch. It does not depend on the source of the batches or the number of processes."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unetpp.data.scaling import scale
from unetpp.models.segmenter import Segmenter
from unetpp.network.losses import deep_supervision_loss, head_weights
from unetpp.network.masks import MASK, to_mask, to_probs
from unetpp.network.targets import mask_of
from unetpp.scores.metrics import confusion, per_image_iou
from unetpp.training.batch_norm import reset_statistics
from unetpp.training.step import TrainStep

Batch = tuple[Tensor, Tensor]  # image (N, C, H, W) float, mask (N, H, W) uint8, or int32 of `unetpp.network.targets`
PRECISIONS, OPTIMIZERS = ("auto", "bf16", "fp16", "fp32"), ("adamw", "adam", "sgd")


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type of convolutions: "fp32", "bf16", "fp16", or "auto", which is bf16 if the hardware supports it.

    Otherwise "auto" is fp16 with a scaled loss (`make_scaler`) on a GPU, and fp32 on a CPU: without AVX-512 BF16 or
    AMX, bf16 is emulated there, ten times slower than fp32 (benchmarks/train.py).
    """
    if precision == "auto":
        if device.type == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            there = torch.cpu.get_capabilities()
            precision = "bf16" if there.get("avx512_bf16") or there.get("amx_tile") else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def make_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler | None:
    """The loss scaler that keeps small fp16 gradients from vanishing; None for the other types."""
    return torch.amp.GradScaler(device.type) if dtype == torch.float16 else None


def make_optimizer(
    network: nn.Module, name: str, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum ("sgd"), "adam" or "adamw", as a fused kernel if the device has one.

    An encoder's parameters form a separate group, the last (`encoder_share`).
    """
    parameters: list[Any] = list(network.parameters())
    fused = all(one.device.type in ("cpu", "cuda") for one in parameters)
    if pyramid := getattr(network, "pyramid", None):
        theirs = list(pyramid.parameters())
        known = set(map(id, theirs))
        parameters = [{"params": some} for some in ([one for one in parameters if id(one) not in known], theirs)]
    if name == "sgd":
        return torch.optim.SGD(
            parameters, learning_rate, momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=fused
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(parameters, learning_rate, weight_decay=weight_decay, fused=fused)


def schedule(peak: float, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """The learning rate by step: a linear warm-up, then a cosine to zero. It has no state to save.

    The warm-up takes at most half of the steps, because a run that ended at the peak rate would not have converged.
    """
    warmup_steps = min(warmup_steps, total_steps // 2)

    def rate(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return rate


def encoder_share(share: float, frozen_steps: int) -> Callable[[int], float]:
    """An encoder's share of the learning rate by step: 0 in the first steps, which keeps its weights unchanged; the
    gradients of all parameters are still computed."""
    return lambda step: share if step >= frozen_steps else 0.0


def epoch_order(num: int, seed: int, epoch: int) -> list[int]:
    """The order of `num` samples in an epoch; depends only on seed and epoch."""
    return np.random.default_rng((seed, epoch)).permutation(num).tolist()


def cut_epoch(num: int, batch_size: int, world: int = 1) -> list[int]:
    """The size of each batch of an epoch: every sample is used once, and sizes differ by at most one.

    A last batch of a few samples would be a step with a noisy gradient, and leave some processes without samples. So
    the samples are spread evenly over as many batches as `batch_size` requires, and every process has a sample in every
    batch. If `batch_size` is one per process and `world` does not divide `num`, some batches are larger.
    """
    batches = max(1, min(-(-num // batch_size), num // world))
    return [num // batches + (number < num % batches) for number in range(batches)]


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """The seed of dropout in a step, so that a resumed run draws the same values as an uninterrupted one."""
    return int(np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1)[0])


def plain_batches(split, indices: Iterable[int], batch_size: int) -> Iterator[Batch]:
    """Batches of unaugmented images in [0, 1], in order; an image of another size begins a new batch."""
    images: list[Tensor] = []
    masks: list[Tensor] = []
    for i in indices:
        image, mask = split[i]
        scaled = scale(image)
        if images and (len(images) == batch_size or images[0].shape != scaled.shape):
            yield torch.stack(images), torch.stack(masks)
            images, masks = [], []
        images.append(scaled)
        masks.append(torch.from_numpy(np.array(mask)))
    if images:
        yield torch.stack(images), torch.stack(masks)


def make_loss(
    name: str,
    weights: str | Sequence[float],
    depths: Sequence[int],
    class_weights: Tensor | None = None,
    multilabel: bool = False,
    background: bool = True,
    targets: tuple[str, ...] = MASK,
) -> Callable[[tuple[Tensor, ...], Tensor], Tensor]:
    """The training loss: a function from the logits of the heads (N, num_outputs, H, W) and mask (N, H, W) to (N,).

    Args:
        name, weights: see `unetpp.network.losses.LOSSES` and `head_weights`.
        depths: the depths of the heads.
        class_weights, multilabel, background: see `segmentation_loss`.
        targets: see `deep_supervision_loss`.
    """
    each = head_weights(weights, depths).unsqueeze(1)

    def loss(logits: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        nonlocal each
        losses = deep_supervision_loss(logits, mask, class_weights, name, multilabel, background, targets)
        each = each.to(losses.device)  # only once, because it waits for the GPU
        return (each * losses).sum(dim=0)

    return loss


def train_steps(
    step: TrainStep,
    batches: Iterable[Batch],
    rate: Callable[[int], float],
    first_step: int,
    sizes: Iterable[int] | None = None,
    seeds: Callable[[int], int] = lambda number: number,
) -> Iterator[Tensor]:
    """Train on the batches, one step for each.

    Args:
        batches: standardised (`unetpp.data.loader`), this process's part of each.
        rate: learning rate by step (`schedule`).
        first_step: number of steps done before.
        sizes: number of images in each batch over all processes; None if this process has all images.
        seeds: the seed of dropout by step.

    Yields:
        after each step (2,) float64: the sum of the losses of its images, and their number.
    """
    step.network.train()
    pairs = ((batch, len(batch[1])) for batch in batches) if sizes is None else zip(batches, sizes, strict=True)
    for number, ((image, mask), size) in enumerate(pairs, start=first_step):
        yield step(image, mask, size, rate(number), number, seeds(number))
    step.look()


def train_epoch(
    network: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float],
    first_step: int,
    device: torch.device,
    dtype: torch.dtype,
    loss: Callable[[tuple[Tensor, ...], Tensor], Tensor],
) -> Tensor:
    """One pass over the batches in one process, without checkpoints: see `train_steps` and `TrainStep`.

    The running statistics of batch norm are the mean over the batches of this pass: the usual moving average only
    reflects the last few dozen images (Wu and Johnson 2021).

    Returns:
        (2,) float64: the sum of the losses of the images, and the number of images.
    """
    reset_statistics(network)
    step = TrainStep(network, optimizer, loss, device, dtype)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for sums in train_steps(step, batches, rate, first_step):
        total += sums
    return total


@torch.inference_mode()
def validate(
    segmenter: Segmenter,
    batches: Iterable[Batch],
    dtype: torch.dtype,
    class_weights: Tensor | None = None,
    loss: str = "ce_dice",
) -> Tensor:
    """Sums over the images of the batches, to be added over shards and then divided.

    Returns:
        (num_heads + 1, 2) float64: for each head the sums over the images of loss and foreground IoU; the last row is
        the number of images, twice.
    """
    segmenter.eval()
    network = segmenter.network
    device = next(network.parameters()).device
    sums = torch.zeros(len(network.depths) + 1, 2, dtype=torch.float64, device=device)
    for image, mask in batches:
        image, mask = _to_device(image, mask, device)
        height, width = mask.shape[-2:]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = tuple(one[..., :height, :width] for one in segmenter.logits(image))
        losses = deep_supervision_loss(logits, mask, class_weights, loss, *network.task[1:], network.targets)
        sums[:-1, 0] += losses.sum(dim=1)
        mask = mask_of(mask)
        for head, one in enumerate(logits):
            mask_hat = to_mask(to_probs(one.float(), *network.task[:2]), *network.task[:2])
            counts = confusion(mask_hat, mask, *network.task)
            sums[head, 1] += per_image_iou(counts).sum()
        sums[-1] += len(mask)
    return sums


def _to_device(image: Tensor, mask: Tensor, device: torch.device) -> Batch:
    """Move a batch to the device in channels_last, the fastest layout for convolutions on both CPUs and GPUs."""
    image = image.to(device, non_blocking=True, memory_format=torch.channels_last)
    return image, mask.to(device, non_blocking=True)
