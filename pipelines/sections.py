"""The sections of params.yaml, one class each: every legal key and value.

No default stands here for what params.yaml holds.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# Of a folder's name or a category; background needs none.
ClassName = Annotated[str, Field(pattern=r"^[^/\\]+$")]
# Two widths are a network of depth 1, seven one of depth 6.
Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=7)]


class Section(BaseModel):
    """A frozen section of params.yaml: no unknown key, no default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Synthetic(Section):
    num_images: PositiveInt
    size_px: Annotated[int, Field(ge=32, le=4096)]
    seed: NonNegativeInt
    masks: Literal["instances", "classes", "labels"]


class S3(Section):
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/@\s]+/?$")] | None
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None
    profile: str | None
    anonymous: bool
    requester_pays: bool
    checksums: Literal["when_supported", "when_required"]

    @model_validator(mode="after")
    def _one_identity(self):
        if self.anonymous and (self.profile or self.requester_pays):
            other = "profile" if self.profile else "requester_pays"
            raise ValueError(f"anonymous requests have no identity, and {other} needs one: set one of the two")
        return self


class Ingest(Section):
    kind: Literal["synthetic", "folder", "zip", "tar", "http", "s3"]
    location: str | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    num_workers: Annotated[int, Field(ge=1, le=256)]
    s3: S3
    synthetic: Synthetic

    @model_validator(mode="after")
    def _located(self):
        if self.kind == "synthetic":
            return self
        location = self.location or ""
        scheme = location.partition("://")[0].lower() if "://" in location else None
        if self.kind == "s3" and not re.fullmatch(r"s3://[^/]+(/.*)?", location):
            raise ValueError(f"kind is s3, so ingest.location must be s3://bucket/prefix, found {self.location!r}")
        if self.kind == "http" and not re.fullmatch(r"https?://[^/]+/.*", location):
            raise ValueError(
                f"kind is http, so ingest.location must be the address of a zip or tar, http(s)://..., "
                f"found {self.location!r}"
            )
        if self.kind in ("folder", "zip", "tar"):
            if not location:
                raise ValueError(f"kind is {self.kind}, so ingest.location must be the path of that {self.kind}")
            if scheme in ("http", "https", "s3"):
                raise ValueError(
                    f"kind is {self.kind}, so ingest.location must be a path, found {location!r}: "
                    f"set ingest.kind={'s3' if scheme == 's3' else 'http'}"
                )
        if self.sha256 and self.kind in ("folder", "s3"):
            raise ValueError(f"sha256 is of an archive, and kind is {self.kind}: set ingest.sha256 to null")
        return self


class Shares(Section):
    train: Annotated[float, Field(gt=0, lt=1)]
    val: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _whole(self):
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"the shares must add up to 1, found {self.train + self.val + self.test:g}")
        return self


class Groups(Section):
    pattern: str | None
    table: str | None

    @model_validator(mode="after")
    def _one_way(self):
        if self.pattern is not None and self.table is not None:
            raise ValueError("found a pattern and a table; expected one of them: set the other to null")
        if self.pattern is not None:
            try:
                num_groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"pattern is no regular expression ({error}), found {self.pattern!r}") from None
            if num_groups != 1:
                raise ValueError(
                    f"pattern must have one group in parentheses, such as ^(patient\\d+)_, found {num_groups} in "
                    f"{self.pattern!r}; parentheses that are no group begin with (?:"
                )
        return self


class NearDuplicates(Section):
    distance: Annotated[int, Field(ge=0, le=15)]
    correlation: Annotated[float, Field(gt=0, le=1)]


class Prepare(Section):
    size: Annotated[int, Field(ge=16, le=8192)] | None
    channels: Literal[1, 3]
    num_classes: Annotated[int, Field(ge=1, le=255)]
    shares: Shares
    salt: str
    max_quarantined: Share
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] | None
    pages: Literal["refuse", "slices"]
    max_pixels: PositiveInt
    max_file_mib: PositiveInt
    num_workers: Annotated[int, Field(ge=1, le=256)]
    groups: Groups
    near_duplicates: NearDuplicates | None
    folds: Annotated[int, Field(ge=2, le=100)] | None
    fold: NonNegativeInt

    @model_validator(mode="after")
    def _classes_counted(self):
        if self.classes is None:
            return self
        if len({name.casefold() for name in self.classes}) < len(self.classes):
            raise ValueError(f"prepare.classes must differ, found {', '.join(self.classes)}")
        if self.num_classes not in (1, len(self.classes) + 1):
            raise ValueError(
                f"prepare.num_classes is {self.num_classes} and prepare.classes names {len(self.classes)}: set it to "
                f"{len(self.classes) + 1}, for them and the background, or to 1 for foreground alone"
            )
        return self

    @model_validator(mode="after")
    def _fold_exists(self):
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(
                f"fold is {self.fold} and counts from 0, so of {self.folds} folds the last is {self.folds - 1}"
            )
        return self


class Model(Section):
    skips: Literal["dense", "short", "encoder", "plain"]
    deep_supervision: bool
    norm: Literal["batch", "instance", "group"]
    upsampling: Literal["bilinear_aligned", "bilinear", "transposed"]
    dropout: Annotated[float, Field(ge=0, lt=1)]

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


class Search(Section):
    widths: Annotated[tuple[Widths, ...], Field(min_length=1)]
    epochs: PositiveInt
    max_concurrent: PositiveInt
    num_workers: PositiveInt
    cpus_per_worker: PositiveInt


def _check_weights(value):
    """A wrong value in one sentence; pydantic has one for each of the types that it may be."""
    is_list = isinstance(value, list | tuple) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and one >= 0 for one in value
    )
    if value is None or value == "balanced" or (is_list and any(value)):
        return value
    raise ValueError(f"expected null, balanced or a list of weights from 0 on, one a class, found {value!r}")


class Train(Section):
    epochs: PositiveInt
    batch_size: PositiveInt
    crop_px: PositiveInt | None
    optimizer: Literal["adamw", "adam", "sgd"]
    learning_rate: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegativeFloat
    warmup_epochs: NonNegativeInt
    precision: Literal["auto", "bf16", "fp32"]
    num_workers: PositiveInt
    cpus_per_worker: PositiveInt
    use_gpu: bool
    max_failures: NonNegativeInt
    timeout_s: PositiveInt
    seed: NonNegativeInt
    loader_workers: Annotated[int, Field(ge=0, le=128)]
    foreground_crops: Share
    class_weights: Annotated[Literal["balanced"] | tuple[float, ...] | None, BeforeValidator(_check_weights)]
    loss: Literal["ce_dice", "focal_dice", "lovasz", "tversky"]
    head_weights: Literal["mean", "sum"] | Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=6)]

    @model_validator(mode="after")
    def _cropped(self):
        if self.foreground_crops and self.crop_px is None:
            raise ValueError(
                f"train.foreground_crops is {self.foreground_crops:g}, and train.crop_px is null, so that images are "
                "not cropped: set train.crop_px, or train.foreground_crops to 0"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self):
        if self.batch_size % self.num_workers:
            raise ValueError(
                f"train.batch_size is {self.batch_size} over all workers and must be a multiple of "
                f"train.num_workers, which is {self.num_workers}"
            )
        return self


class Augment(Section):
    flips: bool
    brightness: Annotated[float, Field(ge=0, le=1)]
    hue: Annotated[int, Field(ge=0, le=90)]
    on_device: bool


class Gates(Section):
    num_images: PositiveInt
    flips: Share
    shift_px: PositiveInt
    shift: Share
    brightness: Share
    empty: Share


def _check_sizes(sizes):
    if sizes is not None and sizes[0] >= sizes[1]:
        raise ValueError(f"expected two diameters, the smaller first, or null, found {list(sizes)}")
    return sizes


class Evaluate(Section):
    tolerance_iou: Annotated[float, Field(ge=0, le=1)]
    max_latency_ms: PositiveFloat | None
    latency_rounds: Annotated[int, Field(ge=3)]
    latency_size_px: PositiveInt | None
    throughput_batch: PositiveInt
    max_memory_mib: PositiveFloat | None
    max_parameters: PositiveInt | None
    boundary_tolerance_px: PositiveFloat
    object_sizes_px: Annotated[tuple[PositiveFloat, PositiveFloat] | None, AfterValidator(_check_sizes)]
    page_images: Annotated[int, Field(ge=3)]
    gates: Gates


class Register(Section):
    experiment: Annotated[str, Field(min_length=1)]
    model_name: Annotated[str, Field(min_length=1, pattern=r"^[^/:.%\"']+$")]
    tracking_uri: str | None


class Cluster(Section):
    storage: Annotated[str, Field(min_length=1)] | None
    cache: Annotated[str, Field(min_length=1)] | None

    @model_validator(mode="after")
    def _found_everywhere(self):
        storage = self.storage or "/"
        if "://" in storage and not re.fullmatch(r"s3://[^/]+(/.*)?", storage):
            raise ValueError(f"cluster.storage must be a path or s3://bucket/prefix, found {storage!r}")
        if "://" not in storage and not Path(storage).is_absolute():
            raise ValueError(f"cluster.storage must be an absolute path, the same on all machines, found {storage!r}")
        return self


class Architecture(Section):
    """architecture.yaml, in which search hands its choice to train; the depth is `len(widths) - 1`."""

    widths: Widths
