"""One step of the optimizer: micro-batches, clipping, and what is done when numbers or memory run out."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unetpp.batch_norm import Statistics
from unetpp.ema import Ema
from unetpp.errors import UserError
from unetpp.memory import free_memory, is_out_of_memory, peak_memory_mib

# A look at the norms of gradients makes a GPU wait, so that there several steps are looked at together.
LOOK_EVERY = {"cpu": 1, "cuda": 8}


class NonFiniteError(UserError):
    """A loss or a gradient that is no finite number.

    Args:
        step: the number that the step was called with.
        images: which of its images (their places in the batch of this process) have a loss that is none.
    """

    def __init__(self, step: int, images: list[int]):
        super().__init__(f"the loss or its gradient is not finite in step {step}")
        self.step, self.images = step, images


class OutOfMemoryError(UserError):
    """A batch that does not fit; the message says how much does. `parts`: in how many it would be tried next."""

    def __init__(self, message: str, parts: int):
        super().__init__(message)
        self.parts = parts


class TrainStep:
    """Steps of an optimizer, each on this process's part of a batch.

    Args:
        network: a NestedUNet, or what wraps one.
        optimizer: of its parameters.
        loss: from the logits of the heads and the mask to the loss of each image (`unetpp.loop.make_loss`).
        device, dtype: where the network lies, and in which type convolutions run.
        world: processes that share each batch; the network is then a DistributedDataParallel.
        accumulate: parts that a batch is computed in, one after another, to hold less memory.
        clip_norm: longer gradients are shortened to this norm; None: none is.
        nonfinite: "stop" raises `NonFiniteError`, "skip" drops the step and counts it.
        on_oom: what out of memory leads to: "stop" finds what fits and says it, "halve" doubles `accumulate`.
        ema: takes in the weights after each step.
        scaler: of the loss, for fp16.

    Attributes:
        accumulate: as it is now.
        skipped: steps that were dropped.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[tuple[Tensor, ...], Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype,
        *,
        world: int = 1,
        accumulate: int = 1,
        clip_norm: float | None = None,
        nonfinite: str = "stop",
        on_oom: str = "stop",
        ema: Ema | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ):
        self.network, self.optimizer, self.loss = network, optimizer, loss
        self.device, self.dtype, self.world = device, dtype, world
        self.accumulate, self.clip_norm = accumulate, clip_norm
        self.nonfinite, self.on_oom = nonfinite, on_oom
        self.ema, self.scaler = ema, scaler
        self.skipped = 0
        self._parameters = [one for group in optimizer.param_groups for one in group["params"]]
        self._statistics = Statistics(network)
        self._seen: list[tuple[int, Tensor, Tensor]] = []  # steps, norms and losses that were not looked at yet

    def __call__(self, image: Tensor, mask: Tensor, size: int, rate: float, number: int, seed: int) -> Tensor:
        """One step.

        Args:
            image, mask: this process's part of the batch (`unetpp.loop.Batch`).
            size: images in the batch of all processes.
            rate: the learning rate.
            number: of the step, counted from 0 over all epochs.
            seed: of what dropout draws.

        Returns:
            (2,) float64: the sum of the losses of this process's images, and their number; zeros of a dropped step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Channels last: the layout in which convolutions are fastest on processors and GPUs alike.
        image = image.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        mask = mask.to(self.device, non_blocking=True)
        can_repeat = self.nonfinite == "skip" or self.on_oom == "halve"
        kept = self._statistics.keep() if can_repeat else []
        while (losses := self._try(image, mask, size, seed)) is None:
            self._make_smaller(image, mask, size, seed)
            self._statistics.restore(kept)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        if self.nonfinite == "skip" and not self.scaler and not torch.isfinite(norm):
            self.skipped += 1
            self._statistics.restore(kept)
            return torch.zeros(2, dtype=torch.float64, device=self.device)
        if self.scaler:  # which drops steps itself, as a matter of course
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
            self._seen.append((number, norm, losses))
            if len(self._seen) >= LOOK_EVERY.get(self.device.type, 1):
                self.look()
        if self.ema:
            self.ema.update(number)
        return torch.stack([losses.sum(), torch.tensor(len(mask), device=self.device)]).double()

    def look(self) -> None:
        """Raise `NonFiniteError` if any step since the last look had no finite gradient; the same in all processes."""
        seen, self._seen = self._seen, []
        for number, norm, losses in seen:
            if not torch.isfinite(norm):
                raise NonFiniteError(number, (~losses.isfinite()).nonzero()[:, 0].tolist())

    def _try(self, image: Tensor, mask: Tensor, size: int, seed: int) -> Tensor | None:
        """The losses of the images, with the gradients left in the parameters; None where memory is short.

        The error goes with its frames, which hold the very memory that is short.
        """
        try:
            return self._compute_gradients(image, mask, size, seed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self.optimizer.zero_grad(set_to_none=True)
        free_memory(self.device)
        return None

    def _compute_gradients(self, image: Tensor, mask: Tensor, size: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        self.optimizer.zero_grad(set_to_none=True)
        parts = min(self.accumulate, max(1, size // self.world))  # the same number in every process
        losses = []
        for number, (some, some_mask) in enumerate(
            zip(image.tensor_split(parts), mask.tensor_split(parts), strict=True), start=1
        ):
            alone = number < parts and isinstance(self.network, DistributedDataParallel)
            with self.network.no_sync() if alone else nullcontext():  # pyright: ignore[reportCallIssue]
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    logits = self.network(some)
                each = self.loss(logits, some_mask)  # (n,)
                # DistributedDataParallel takes the mean over processes; this makes it the mean over images.
                total = each.sum() * (self.world / size)
                (self.scaler.scale(total) if self.scaler else total).backward()
            losses.append(each.detach())
        return torch.cat(losses)

    def _clip(self) -> Tensor:
        """The norm of the gradient before it was shortened."""
        if self.clip_norm is not None:
            return nn.utils.clip_grad_norm_(self._parameters, self.clip_norm)
        return nn.utils.get_total_norm([one.grad for one in self._parameters if one.grad is not None])

    def _make_smaller(self, image: Tensor, mask: Tensor, size: int, seed: int) -> None:
        """After a batch that did not fit: take more and smaller parts, or say how many would do."""
        own, peak = len(image), peak_memory_mib(self.device)
        tried = min(self.accumulate, own)
        found = (
            f"out of memory at a batch of {-(-own // tried)} image(s) of {image.shape[-2]}x{image.shape[-1]} px in a "
            f"process, of {size} over all; the peak was {peak:.0f} MiB"
        )
        smaller = "nothing smaller is left: lower train.crop_px, prepare.size or the widths"
        if tried >= own:
            raise OutOfMemoryError(f"{found}; {smaller}", tried)
        if self.world > 1:  # nothing can be tried: the other processes wait for this one's gradients
            raise OutOfMemoryError(
                f"{found}; half of it may fit: set train.accumulate={2 * tried}, train.batch_size={size // 2} or "
                "train.checkpoint_levels",
                2 * tried,
            )
        if self.on_oom == "halve":
            self.accumulate = 2 * tried
            print(f"{found}; goes on in {self.accumulate} parts (train.on_oom=halve)", flush=True)
            return
        parts = 2 * tried
        while parts < 2 * own:
            self.accumulate = parts
            if self._try(image, mask, size, seed) is not None:
                fits = -(-own // min(parts, own))
                raise OutOfMemoryError(
                    f"{found}; {fits} image(s) at once fit: set train.accumulate={parts}, train.batch_size={fits}, "
                    "train.checkpoint_levels, or train.on_oom=halve",
                    parts,
                )
            parts *= 2
        raise OutOfMemoryError(f"{found}, and one image alone did not fit either; {smaller}", own)
