"""The sections model, train and augment of params.yaml."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipelines.core.sections.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)
from unetpp.data.symmetries import Flips
from unetpp.network.masks import FOR_INSTANCES, MASK

HUB = "hub"  # as initial weights of an encoder, timm's own


def _check_encoder(value):
    """Reject a wrong value in one sentence; pydantic would show a regular expression."""
    if value is None or (isinstance(value, str) and re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", value)):
        return value
    raise ValueError(
        f"expected null or the name of a network of timm, such as resnet34, in small letters and without an address, "
        f"found {value!r}"
    )


def _check_encoder_weights(value):
    """Reject a wrong value in one sentence; pydantic has one for each possible type."""
    given = value.values() if isinstance(value, dict) else [value]
    if all(one is None or (isinstance(one, str) and one) for one in given):
        return value
    raise ValueError(f"expected null, hub, a path, or one of these for each encoder by its name, found {value!r}")


class Model(Section):
    skips: Literal["dense", "short", "encoder", "plain"]
    deep_supervision: bool
    norm: Literal["batch", "instance", "group"]
    upsampling: Literal["bilinear_aligned", "bilinear", "transposed"]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    encoder: Annotated[str | None, BeforeValidator(_check_encoder)]  # a name of timm's
    encoder_weights: Annotated[str | dict[str, str | None] | None, BeforeValidator(_check_encoder_weights)]
    targets: tuple[str, ...]

    @property
    def build(self) -> dict[str, Any]:
        """Keywords of NestedUNet."""
        return self.model_dump(exclude={"encoder_weights"})

    @property
    def initial_weights(self) -> str | None:
        """The file, or HUB, that `encoder_weights` gives for the encoder."""
        given = self.encoder_weights
        if self.encoder is None:
            return None
        return given[self.encoder] if isinstance(given, dict) else given

    @field_validator("targets")
    @classmethod
    def _mask_or_instances(cls, targets):
        if targets not in (MASK, FOR_INSTANCES):
            expected = f"expected {list(MASK)}, or {list(FOR_INSTANCES)} to part instances"
            raise ValueError(f"{expected}, found {list(targets)}")
        return targets

    @model_validator(mode="after")
    def _supervised_nodes_exist(self):
        if self.skips == "plain" and self.deep_supervision:
            raise ValueError(
                "a plain U-Net has no shallow heads: set model.deep_supervision to false, or another model.skips"
            )
        if self.skips == "encoder" and not self.deep_supervision:
            raise ValueError(
                "UNet^e trains its embedded U-Nets through their heads: set model.deep_supervision to true, "
                "or another model.skips"
            )
        return self


def _check_weights(value):
    """Reject a wrong value in one sentence; pydantic has one for each possible type."""
    is_list = isinstance(value, list | tuple) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and one >= 0 for one in value
    )
    if value is None or value == "balanced" or (is_list and any(value)):
        return value
    raise ValueError(f"expected null, balanced or a list of weights from 0 on, one a class, found {value!r}")


def _check_workers(value):
    """Check for a number of processes, or the fewest and the most; the error is one sentence."""
    ends = list(value) if isinstance(value, list | tuple) else [value]
    whole = [int(one) for one in ends if not isinstance(one, bool) and str(one).isdecimal() and int(one) > 0]
    if len(whole) != len(ends) or len(ends) not in (1, 2) or (isinstance(value, list | tuple) and len(ends) == 1):
        raise ValueError(
            "expected a number of processes, or [fewest, most] for an elastic training run that continues when some "
            f"leave or join, found {value!r}"
        )
    if len(ends) == 2 and whole[0] >= whole[1]:
        raise ValueError(f"expected [fewest, most] with fewer in front, or one number, found {value!r}")
    return tuple(whole) if len(ends) == 2 else whole[0]


class Train(Section):
    epochs: PositiveInt
    batch_size: PositiveInt
    crop_px: PositiveInt | None
    optimizer: Literal["adamw", "adam", "sgd"]
    learning_rate: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegativeFloat
    warmup_epochs: NonNegativeInt
    encoder_lr: Annotated[float, Field(gt=0, le=1)]
    freeze_encoder_epochs: NonNegativeInt
    precision: Literal["auto", "bf16", "fp16", "fp32"]
    num_workers: Annotated[PositiveInt | tuple[PositiveInt, PositiveInt], BeforeValidator(_check_workers)]
    cpus_per_worker: PositiveInt
    use_gpu: bool
    max_failures: NonNegativeInt
    timeout_s: PositiveInt
    seed: NonNegativeInt
    loader_workers: Annotated[int, Field(ge=0, le=128)]
    crops_per_image: PositiveInt
    foreground_crops: Share
    class_weights: Annotated[Literal["balanced"] | tuple[float, ...] | None, BeforeValidator(_check_weights)]
    loss: Literal["ce_dice", "focal_dice", "lovasz", "tversky"]
    head_weights: Literal["mean", "sum"] | Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=6)]
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    accumulate: PositiveInt
    clip_norm: PositiveFloat | None
    checkpoint_levels: Annotated[int, Field(ge=0, le=7)]
    sync_batchnorm: bool
    checkpoint_every_steps: PositiveInt | None
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None
    static_graph: bool
    compress_gradients: Literal["bf16"] | None
    deterministic: bool
    nonfinite: Literal["stop", "skip"]
    on_oom: Literal["stop", "halve"]
    init: Annotated[str, Field(min_length=1)] | None  # search, models:/..., or the folder of a model

    @property
    def min_workers(self) -> int:
        """With fewer processes a training run waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _cropped(self):
        if self.foreground_crops and self.crop_px is None:
            raise ValueError(
                f"train.foreground_crops is {self.foreground_crops:g}, and train.crop_px is null, so that images are "
                "not cropped: set train.crop_px, or train.foreground_crops to 0"
            )
        if self.crops_per_image > 1 and self.crop_px is None:
            raise ValueError(
                f"train.crops_per_image is {self.crops_per_image}, and train.crop_px is null, so that images are not "
                "cropped: set train.crop_px, or train.crops_per_image to 1"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self):
        if self.batch_size % self.max_workers:
            raise ValueError(
                f"train.batch_size is {self.batch_size} over all workers and must be a multiple of "
                f"train.num_workers, which is {self.max_workers}"
                f"{' at most' if self.max_workers > self.min_workers else ''}"
            )
        return self

    @model_validator(mode="after")
    def _parts_and_exchanges(self):
        if self.accumulate * self.max_workers > self.batch_size:
            raise ValueError(
                f"train.accumulate is {self.accumulate}, and a process has {self.batch_size // self.max_workers} "
                "image(s) of a batch: use at most that many parts"
            )
        if self.static_graph and self.accumulate > 1:
            raise ValueError(
                "train.static_graph expects every pass to exchange gradients, and train.accumulate has passes that do "
                "not: set train.static_graph to false, or train.accumulate to 1"
            )
        if self.static_graph and self.max_workers > self.min_workers:
            raise ValueError(
                "train.static_graph expects every pass to exchange gradients, and of fewer workers each computes its "
                "share in more passes: set train.static_graph to false, or train.num_workers to one number"
            )
        if self.compile and not self.use_gpu:
            raise ValueError(
                "train.compile is for GPUs: on CPUs compiled training was 0.84 times as fast, after 52 s of "
                "compiling; set it to null, or train.use_gpu to true"
            )
        if self.compress_gradients and not self.use_gpu:
            raise ValueError(
                "train.compress_gradients is for NCCL, between GPUs: set it to null, or train.use_gpu to true"
            )
        if self.sync_batchnorm and not self.use_gpu:
            raise ValueError(
                "train.sync_batchnorm is torch's own, which runs on GPUs alone: set it to false (on CPUs model.norm "
                "group or instance needs no batch of all processes), or train.use_gpu to true"
            )
        return self


def _check_flips(value):
    """Refuse true and false, which words have replaced."""
    if isinstance(value, bool):
        words = (
            "augment.flips: all and augment.quarter_turns: true"
            if value
            else ("augment.flips: none and augment.quarter_turns: false")
        )
        raise ValueError(
            f"found {str(value).lower()}, as earlier versions had it; expected none, horizontal, vertical or all: for "
            f"the same as before set {words}"
        )
    return value


class Augment(Section):
    flips: Annotated[Flips, BeforeValidator(_check_flips)]
    quarter_turns: bool
    rotate: Annotated[float, Field(ge=0, le=180)]
    zoom: Annotated[float, Field(ge=1, le=4)]
    brightness: Annotated[float, Field(ge=0, le=1)]
    hue: Annotated[int, Field(ge=0, le=90)]
    on_device: bool
