"""One optimizer step: micro-batches, gradient clipping, and the handling of non-finite values and lack of memory."""

import traceback
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unetpp.errors import UserError
from unetpp.training.batch_norm import Statistics
from unetpp.training.ema import Ema
from unetpp.training.failures import Exchange, FailedError, Failure, describe, gather_failures
from unetpp.training.memory import free_memory, is_out_of_memory, peak_memory_mib

# Reading gradient norms waits for the GPU, so on a GPU several steps are checked together.
LOOK_EVERY = {"cpu": 1, "cuda": 8}


class NonFiniteError(UserError):
    """A non-finite loss or gradient.

    Args:
        step: the number that the step was called with.
        images: indices, in this process's batch, of the images with a non-finite loss.
    """

    def __init__(self, step: int, images: list[int]):
        super().__init__(f"the loss or its gradient is not finite in step {step}")
        self.step, self.images = step, images


class TrainStep:
    """Optimizer steps, each on this process's part of a batch.

    Args:
        network: a NestedUNet or a wrapper of one.
        optimizer: for the network's parameters.
        loss: from the logits of the heads and the mask to the loss of each image (`unetpp.training.loop.make_loss`).
        device, dtype: the device of the network, and the type of convolutions.
        world: number of processes that share each batch; with several the network is a DistributedDataParallel.
        accumulate: number of parts in which a batch is computed, one after another, to use less memory.
        clip_norm: maximum gradient norm; None for no limit.
        nonfinite: "stop" raises `NonFiniteError`, "skip" drops the step and counts it.
        on_oom: on out of memory, "stop" reports the batch that fits, "halve" doubles `accumulate`.
        ema: moving average of the weights, updated after each step.
        scaler: loss scaler for fp16.
        encoder_share: share of the learning rate by step for the optimizer's second group, if it has one.

    Attributes:
        accumulate: the present number of parts.
        skipped: number of steps that were dropped.
        absent: the reason why this process has no batch for the next steps, or None; the others learn it in the step.
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
        encoder_share: Callable[[int], float] = lambda _step: 1.0,
    ):
        self.network, self.optimizer, self.loss = network, optimizer, loss
        self.device, self.dtype, self.world = device, dtype, world
        self.accumulate, self.clip_norm = accumulate, clip_norm
        self.nonfinite, self.on_oom = nonfinite, on_oom
        self.ema, self.scaler, self.encoder_share = ema, scaler, encoder_share
        self.skipped = 0
        self.absent: Exception | None = None
        self._exchange = Exchange(network) if isinstance(network, DistributedDataParallel) else None
        # Anything that can change the course of training is checked before weights are changed.
        self._looks_first = nonfinite == "skip" or (world > 1 and (on_oom == "halve" or scaler is not None))
        self._parameters = [one for group in optimizer.param_groups for one in group["params"]]
        self._statistics = Statistics(network)
        # Steps, norms, losses and failures that are not checked yet.
        self._seen: list[tuple[int, Tensor, Tensor, Failure | None]] = []

    def __call__(self, image: Tensor, mask: Tensor, size: int, rate: float, number: int, seed: int) -> Tensor:
        """Do one step.

        Args:
            image, mask: this process's part of the batch (`unetpp.training.loop.Batch`).
            size: number of images in the batch over all processes.
            rate: the learning rate.
            number: number of the step, counted from 0 over all epochs.
            seed: the seed of dropout.

        Returns:
            (2,) float64: the sum of the losses of this process's images, and their number; zeros for a dropped step.
        """
        for place, group in enumerate(self.optimizer.param_groups):
            group["lr"] = rate * self.encoder_share(number) if place else rate
        # Channels last: the fastest layout for convolutions on both CPUs and GPUs.
        image = image.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        mask = mask.to(self.device, non_blocking=True)
        kept = self._statistics.keep() if self.nonfinite == "skip" or self.on_oom == "halve" else []
        while True:
            losses, failure = self._try(image, mask, size, seed)
            norm = self._clip()
            looks = self._looks_first or (failure and self._exchange is None)
            if not looks or torch.isfinite(norm) or not self._repeats(failure, number):
                break
            self._statistics.restore(kept)
            if self.scaler and self._exchange:  # the scaler has seen the non-finite gradients
                self.scaler.update()
        if self.nonfinite == "skip" and not self.scaler and not torch.isfinite(norm):
            self.skipped += 1
            self._statistics.restore(kept)
            return torch.zeros(2, dtype=torch.float64, device=self.device)
        if self.scaler:  # the scaler itself drops steps now and then, which is normal
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
            self._seen.append((number, norm, losses, failure))
            if len(self._seen) >= LOOK_EVERY.get(self.device.type, 1):
                self.look()
        if self.ema:
            self.ema.update(number)
        return torch.stack([losses.sum(), losses.new_full((), len(mask))]).double()

    def look(self) -> None:
        """Check the steps since the last check; the outcome is the same in all processes.

        Raises:
            NonFiniteError: a step had a non-finite gradient.
            FailedError: a process could not compute its gradient.
        """
        seen, self._seen = self._seen, []
        for number, norm, losses, failure in seen:
            if not torch.isfinite(norm):
                self._repeats(failure, number)
                raise NonFiniteError(number, (~losses.isfinite()).nonzero()[:, 0].tolist())

    def _repeats(self, own: Failure | None, number: int) -> bool:
        """Whether a non-finite gradient is due to a lack of memory, after which smaller parts are tried.

        Raises:
            FailedError: it is due to another failure, in any process.
        """
        failures = gather_failures(own, self.world)
        for rank, failure in enumerate(failures):
            if failure and failure.parts is None:
                raise FailedError(failure, rank, number)
        parts = [failure.parts for failure in failures if failure and failure.parts]
        self.accumulate = max([self.accumulate, *parts])
        return bool(parts)

    def _try(self, image: Tensor, mask: Tensor, size: int, seed: int) -> tuple[Tensor, Failure | None]:
        """The losses of the images, with the gradients left in the parameters; or a failure.

        A single process only returns a lack of memory as a failure. With several processes every error is a failure,
        and leaves non-finite gradients in all of them.
        """
        if self._exchange:
            self._exchange.begin()
        try:
            if self.absent:
                raise self.absent
            return self._compute_gradients(image, mask, size, seed), None
        except dist.DistError:
            raise  # another process is gone
        except Exception as error:
            failure, short = describe(error), is_out_of_memory(error)
            if self._exchange is None and not short:
                raise
            traceback.clear_frames(error.__traceback__)  # which hold the very memory that is short
            if self._exchange:
                try:
                    with self._autocast():
                        self._exchange.give_nothing(self._parts(size))
                except RuntimeError as late:
                    error.add_note(f"the other processes only notice this after a time-out: {late}")
                    raise error from None
        if short:
            failure = self._answer_to_lack(image, mask, size, seed)
        return torch.zeros(0, device=self.device), failure

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _parts(self, size: int) -> int:
        """The number of parts of a batch, which is the same in every process."""
        return min(self.accumulate, max(1, size // self.world))

    def _compute_gradients(self, image: Tensor, mask: Tensor, size: int, seed: int, exchange: bool = True) -> Tensor:
        torch.manual_seed(seed)
        self.optimizer.zero_grad(set_to_none=True)
        parts, losses = self._parts(size), []
        for number, (some, some_mask) in enumerate(
            zip(image.tensor_split(parts), mask.tensor_split(parts), strict=True), start=1
        ):
            last = number == parts and exchange
            if self._exchange and exchange:
                self._exchange.begin_part(last)
            with nullcontext() if last or not self._exchange else self.network.no_sync():  # pyright: ignore[reportCallIssue]
                with self._autocast():
                    logits = self.network(some)
                each = self.loss(logits, some_mask)  # (n,)
                # DistributedDataParallel takes the mean over processes; this makes it the mean over images.
                total = each.sum() * (self.world / size)
                (self.scaler.scale(total) if self.scaler else total).backward()
            losses.append(each.detach())
        return torch.cat(losses)

    def _clip(self) -> Tensor:
        """Clip the gradient to the maximum norm; returns its norm before, which may be non-finite."""
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        if not gradients:
            return torch.full((), torch.nan)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            return nn.utils.clip_grad_norm_(self._parameters, self.clip_norm)
        return nn.utils.get_total_norm(gradients)

    def _answer_to_lack(self, image: Tensor, mask: Tensor, size: int, seed: int) -> Failure:
        """The failure after a batch that did not fit: with the number of parts to retry in, or with advice."""
        if self._exchange is None:  # else the gradients tell the other processes
            self.optimizer.zero_grad(set_to_none=True)
        free_memory(self.device)
        own, peak = len(image), peak_memory_mib(self.device)
        tried = min(self.accumulate, own)
        found = (
            f"out of memory at a batch of {-(-own // tried)} image(s) of {image.shape[-2]}x{image.shape[-1]} px per "
            f"process, {size} in all processes; the peak was {peak:.0f} MiB"
        )
        smaller = "batches cannot be smaller: lower train.crop_px, prepare.size or the widths"
        if tried >= own:
            return Failure(f"{found}; {smaller}")
        if self.on_oom == "halve":
            print(f"{found}; continuing in {2 * tried} parts (train.on_oom=halve)", flush=True)
            return Failure(found, parts=2 * tried)
        if self._exchange and self._exchange.in_passes:  # nothing can be tried without the others
            how = f"train.accumulate={2 * tried}, train.batch_size={size // 2}"
            return Failure(f"{found}; half of the batch may fit: set {how} or train.checkpoint_levels")
        parts = self._find_parts(image, mask, size, seed, 2 * tried)
        if parts is None:
            return Failure(f"{found}, and a single image did not fit either; {smaller}")
        fits = -(-own // min(parts, own))
        return Failure(
            f"{found}; {fits} image(s) at a time fit: set train.accumulate={parts}, train.batch_size="
            f"{fits * self.world}, train.checkpoint_levels, or train.on_oom=halve"
        )

    def _find_parts(self, image: Tensor, mask: Tensor, size: int, seed: int, parts: int) -> int | None:
        """The first number of parts from `parts` on, doubled each time, in which the batch fits."""
        before = self.accumulate
        try:
            while parts < 2 * len(image):
                self.accumulate = parts
                try:
                    self._compute_gradients(image, mask, size, seed, exchange=False)
                    return parts
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    traceback.clear_frames(error.__traceback__)
                self.optimizer.zero_grad(set_to_none=True)
                free_memory(self.device)
                parts *= 2
        finally:
            self.accumulate = before
            self.optimizer.zero_grad(set_to_none=True)
        return None
