"""One step of the optimizer: micro-batches, clipping, and what is done when numbers or memory run out."""

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


class TrainStep:
    """Steps of an optimizer, each on this process's part of a batch.

    Args:
        network: a NestedUNet, or what wraps one.
        optimizer: of its parameters.
        loss: from the logits of the heads and the mask to the loss of each image (`unetpp.training.loop.make_loss`).
        device, dtype: where the network lies, and in which type convolutions run.
        world: processes that share each batch; the network is then a DistributedDataParallel.
        accumulate: parts that a batch is computed in, one after another, to hold less memory.
        clip_norm: longer gradients are shortened to this norm; None: none is.
        nonfinite: "stop" raises `NonFiniteError`, "skip" drops the step and counts it.
        on_oom: what out of memory leads to: "stop" finds what fits and says it, "halve" doubles `accumulate`.
        ema: takes in the weights after each step.
        scaler: of the loss, for fp16.
        encoder_share: of the learning rate in a step, for the optimizer's second group, if it has one.

    Attributes:
        accumulate: as it is now.
        skipped: steps that were dropped.
        absent: why this process has no batch for the steps to come, if so; the others learn it in the step.
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
        # What leads to another step than the next one is looked at before anything is changed.
        self._looks_first = nonfinite == "skip" or (world > 1 and (on_oom == "halve" or scaler is not None))
        self._parameters = [one for group in optimizer.param_groups for one in group["params"]]
        self._statistics = Statistics(network)
        # Steps, norms, losses and failures that were not looked at yet.
        self._seen: list[tuple[int, Tensor, Tensor, Failure | None]] = []

    def __call__(self, image: Tensor, mask: Tensor, size: int, rate: float, number: int, seed: int) -> Tensor:
        """One step.

        Args:
            image, mask: this process's part of the batch (`unetpp.training.loop.Batch`).
            size: images in the batch of all processes.
            rate: the learning rate.
            number: of the step, counted from 0 over all epochs.
            seed: of what dropout draws.

        Returns:
            (2,) float64: the sum of the losses of this process's images, and their number; zeros of a dropped step.
        """
        for place, group in enumerate(self.optimizer.param_groups):
            group["lr"] = rate * self.encoder_share(number) if place else rate
        # Channels last: the layout in which convolutions are fastest on processors and GPUs alike.
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
            if self.scaler and self._exchange:  # it has seen that no gradient is finite
                self.scaler.update()
        if self.nonfinite == "skip" and not self.scaler and not torch.isfinite(norm):
            self.skipped += 1
            self._statistics.restore(kept)
            return torch.zeros(2, dtype=torch.float64, device=self.device)
        if self.scaler:  # which drops steps itself, as a matter of course
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
        """See to the steps since the last look; the same happens in all processes.

        Raises:
            NonFiniteError: one had no finite gradient.
            FailedError: that was because a process could not compute its own.
        """
        seen, self._seen = self._seen, []
        for number, norm, losses, failure in seen:
            if not torch.isfinite(norm):
                self._repeats(failure, number)
                raise NonFiniteError(number, (~losses.isfinite()).nonzero()[:, 0].tolist())

    def _repeats(self, own: Failure | None, number: int) -> bool:
        """Whether a gradient that is not finite comes of a lack of memory, after which smaller parts are tried.

        Raises:
            FailedError: it comes of another failure, in any process.
        """
        failures = gather_failures(own, self.world)
        for rank, failure in enumerate(failures):
            if failure and failure.parts is None:
                raise FailedError(failure, rank, number)
        parts = [failure.parts for failure in failures if failure and failure.parts]
        self.accumulate = max([self.accumulate, *parts])
        return bool(parts)

    def _try(self, image: Tensor, mask: Tensor, size: int, seed: int) -> tuple[Tensor, Failure | None]:
        """The losses of the images, with the gradients left in the parameters.

        Or why there are none: memory is short. One of several processes answers with any error, and leaves gradients
        that are not finite in all.
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
                    error.add_note(f"the other processes see it by a time-out: {late}")
                    raise error from None
        if short:
            failure = self._answer_to_lack(image, mask, size, seed)
        return torch.zeros(0, device=self.device), failure

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _parts(self, size: int) -> int:
        """In how many parts a batch is computed: the same number in every process."""
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
        """The norm of the gradient before it was shortened; not finite where there is none."""
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        if not gradients:
            return torch.full((), torch.nan)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            return nn.utils.clip_grad_norm_(self._parameters, self.clip_norm)
        return nn.utils.get_total_norm(gradients)

    def _answer_to_lack(self, image: Tensor, mask: Tensor, size: int, seed: int) -> Failure:
        """After a batch that did not fit: in how many parts to try again, or what is to be said."""
        if self._exchange is None:  # else these are what tells the others
            self.optimizer.zero_grad(set_to_none=True)
        free_memory(self.device)
        own, peak = len(image), peak_memory_mib(self.device)
        tried = min(self.accumulate, own)
        found = (
            f"out of memory at a batch of {-(-own // tried)} image(s) of {image.shape[-2]}x{image.shape[-1]} px in a "
            f"process, of {size} over all; the peak was {peak:.0f} MiB"
        )
        smaller = "nothing smaller is left: lower train.crop_px, prepare.size or the widths"
        if tried >= own:
            return Failure(f"{found}; {smaller}")
        if self.on_oom == "halve":
            print(f"{found}; goes on in {2 * tried} parts (train.on_oom=halve)", flush=True)
            return Failure(found, parts=2 * tried)
        if self._exchange and self._exchange.in_passes:  # nothing can be tried without the others
            how = f"train.accumulate={2 * tried}, train.batch_size={size // 2}"
            return Failure(f"{found}; half of it may fit: set {how} or train.checkpoint_levels")
        parts = self._find_parts(image, mask, size, seed, 2 * tried)
        if parts is None:
            return Failure(f"{found}, and one image alone did not fit either; {smaller}")
        fits = -(-own // min(parts, own))
        return Failure(
            f"{found}; {fits} image(s) at once fit: set train.accumulate={parts}, train.batch_size="
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
