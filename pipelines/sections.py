"""The sections of params.yaml, one class each: every legal key and value.

No default stands here for what params.yaml holds.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from unetpp.masks import MAX_LABELS

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# Of a folder's name or a category; background needs none. Predicted labels are written to folders of these names.
ClassName = Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*$")]
# Two widths are a network of depth 1, seven one of depth 6.
Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=7)]


class Section(BaseModel):
    """A frozen section of params.yaml: no unknown key, no default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Synthetic(Section):
    num_images: PositiveInt
    size_px: Annotated[int, Field(ge=32, le=4096)]
    seed: NonNegativeInt
    masks: Literal["instances", "classes", "labels", "partial"]


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
    multilabel: bool
    ignore: Annotated[int, Field(ge=1, le=65535)] | None

    @model_validator(mode="after")
    def _classes_counted(self):
        if self.classes is None:
            return self
        if len({name.casefold() for name in self.classes}) < len(self.classes):
            raise ValueError(f"prepare.classes must differ, found {', '.join(self.classes)}")
        if self.multilabel and self.num_classes != len(self.classes):
            raise ValueError(
                f"prepare.num_classes is {self.num_classes} and prepare.classes names {len(self.classes)}: with "
                f"prepare.multilabel set it to {len(self.classes)}, as the background is no label"
            )
        if not self.multilabel and self.num_classes not in (1, len(self.classes) + 1):
            raise ValueError(
                f"prepare.num_classes is {self.num_classes} and prepare.classes names {len(self.classes)}: set it to "
                f"{len(self.classes) + 1}, for them and the background, or to 1 for foreground alone"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit(self):
        if self.multilabel and not 2 <= self.num_classes <= MAX_LABELS:
            what = "one label is foreground, which needs no prepare.multilabel" if self.num_classes == 1 else ""
            raise ValueError(
                f"prepare.multilabel takes 2 to {MAX_LABELS} labels, found prepare.num_classes "
                f"{self.num_classes}: {what or 'train several networks, or set prepare.multilabel to false'}"
            )
        return self

    @model_validator(mode="after")
    def _ignore_is_no_class(self):
        highest = self.num_classes if self.multilabel or self.num_classes == 1 else self.num_classes - 1
        if self.ignore is not None and self.ignore <= highest:
            raise ValueError(
                f"prepare.ignore is {self.ignore}, which is a class: masks hold 0 to {highest} by prepare.num_classes; "
                "set it to the value of what nobody annotated, or to null"
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


class Grow(Section):
    max_depth: Annotated[int, Field(ge=1, le=6)]
    base: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    growth: Annotated[tuple[Annotated[float, Field(ge=1, le=4)], ...], Field(min_length=1)]

    def candidates(self) -> list[tuple[int, ...]]:
        """base * growth^level for each base and growth, as deep as max_depth."""
        levels = range(self.max_depth + 1)
        return [tuple(round(base * growth**i) for i in levels) for base in self.base for growth in self.growth]


class Budget(Section):
    latency_ms: PositiveFloat | None
    macs: PositiveFloat | None
    parameters: PositiveFloat | None
    memory_mib: PositiveFloat | None


def _check_choices(value):
    """A list of choices, or one range {uniform | log | int: [low, high]}, in one sentence where it is neither."""
    if isinstance(value, list | tuple) and value:
        return value
    if isinstance(value, dict) and len(value) == 1 and set(value) <= {"uniform", "log", "int"}:
        kind, ends = next(iter(value.items()))
        try:
            low, high = (int(str(end)) if kind == "int" else float(end) for end in ends)
        except (TypeError, ValueError):
            raise ValueError(f"expected {{{kind}: [low, high]}} with two numbers, found {value!r}") from None
        if not low < high or (kind == "log" and low <= 0):
            raise ValueError(f"a range goes from a lower to a higher number, of log from above 0, found {value!r}")
        return {kind: [low, high]}
    raise ValueError(f"expected a list of choices or one of {{uniform | log | int: [low, high]}}, found {value!r}")


class Search(Section):
    widths: tuple[Widths, ...]
    epochs: PositiveInt
    max_concurrent: PositiveInt
    num_workers: PositiveInt
    cpus_per_worker: PositiveInt
    grow: Grow | None
    space: dict[str, Annotated[list[Any] | dict[str, Any], BeforeValidator(_check_choices)]]
    searcher: Literal["grid", "random", "tpe", "nsga2"]
    num_trials: PositiveInt | None
    scheduler: Literal["none", "asha", "pbt"]
    grace_epochs: PositiveInt
    reduction: Annotated[float, Field(ge=1.5, le=16)]
    objective: Literal["accuracy", "front"]
    tolerance_iou: Annotated[float, Field(ge=0, le=1)]
    cost: Literal["macs", "parameters", "latency_ms", "memory_mib"]
    budget: Budget
    size_px: PositiveInt | None
    max_hours: PositiveFloat | None
    seed: NonNegativeInt

    @model_validator(mode="after")
    def _not_empty(self):
        if not self.widths and self.grow is None:
            raise ValueError(
                "the space is empty: search.widths has no list and search.grow is null; expected widths such as "
                "[[8, 16, 32]], or search.grow"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self):
        if self.searcher != "grid" and self.num_trials is None:
            raise ValueError(
                f"search.searcher is {self.searcher} and search.num_trials is null: say how many trials it draws"
            )
        if self.grace_epochs > self.epochs:
            raise ValueError(
                f"search.grace_epochs is {self.grace_epochs} and search.epochs is {self.epochs}: no trial would be "
                "compared before its end"
            )
        if self.searcher == "nsga2" and self.objective != "front":
            raise ValueError("search.searcher nsga2 looks for a front of accuracy and cost: set search.objective=front")
        if self.scheduler == "pbt" and (self.searcher not in ("grid", "random") or self.num_workers > 1):
            raise ValueError(
                "search.scheduler pbt changes the trials itself and copies weights between processes of one machine "
                "each: set search.searcher to grid or random, and search.num_workers to 1"
            )
        if self.scheduler == "asha" and self.searcher in ("tpe", "nsga2") and self.objective == "front":
            raise ValueError(
                "search.scheduler asha compares trials by one number and the searcher looks for a front of two: set "
                "search.scheduler=none, or search.objective=accuracy"
            )
        return self

    @property
    def deepest(self) -> int:
        """The depth of the deepest candidate."""
        grown = self.grow.max_depth if self.grow else 0
        return max([grown, *(len(widths) - 1 for widths in self.widths)])


def _check_weights(value):
    """A wrong value in one sentence; pydantic has one for each of the types that it may be."""
    is_list = isinstance(value, list | tuple) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and one >= 0 for one in value
    )
    if value is None or value == "balanced" or (is_list and any(value)):
        return value
    raise ValueError(f"expected null, balanced or a list of weights from 0 on, one a class, found {value!r}")


def _check_workers(value):
    """A number of processes, or the fewest and the most, in one sentence where it is neither."""
    ends = list(value) if isinstance(value, list | tuple) else [value]
    whole = [int(one) for one in ends if not isinstance(one, bool) and str(one).isdecimal() and int(one) > 0]
    if len(whole) != len(ends) or len(ends) not in (1, 2) or (isinstance(value, list | tuple) and len(ends) == 1):
        raise ValueError(
            "expected a number of processes, or [fewest, most] of a training that goes on when some leave and takes in "
            f"those that come, found {value!r}"
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
    precision: Literal["auto", "bf16", "fp16", "fp32"]
    num_workers: Annotated[PositiveInt | tuple[PositiveInt, PositiveInt], BeforeValidator(_check_workers)]
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
    init: Literal["search"] | None

    @property
    def min_workers(self) -> int:
        """With fewer processes a training waits."""
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
                "image(s) of a batch: there can be no more parts than that"
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
        if self.compress_gradients and not self.use_gpu:
            raise ValueError(
                "train.compress_gradients is for NCCL, between GPUs: set it to null, or train.use_gpu to true"
            )
        return self


class Augment(Section):
    flips: bool
    rotate: Annotated[float, Field(ge=0, le=180)]
    zoom: Annotated[float, Field(ge=1, le=4)]
    brightness: Annotated[float, Field(ge=0, le=1)]
    hue: Annotated[int, Field(ge=0, le=90)]
    on_device: bool


class Export(Section):
    formats: tuple[Literal["pt2", "onnx", "onnx-int8"], ...]
    opset: Annotated[int, Field(ge=18, le=23)]
    calibration_images: PositiveInt
    tolerance: PositiveFloat


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
    live: bool
    promotion_tolerance_iou: Annotated[float, Field(ge=0, le=1)]
    promotion_min_images: PositiveInt
    licence: Annotated[str, Field(min_length=1, max_length=500)] | None
    intended_use: Annotated[str, Field(min_length=1, max_length=500)] | None


class Cluster(Section):
    storage: Annotated[str, Field(min_length=1)] | None
    cache: Annotated[str, Field(min_length=1)] | None
    address: Annotated[str, Field(pattern=r"^https?://[^/@\s]+/?$")] | None
    python: Annotated[str, Field(pattern=r"^\S+$")]

    @model_validator(mode="after")
    def _found_everywhere(self):
        storage = self.storage or "/"
        if "://" in storage and not re.fullmatch(r"s3://[^/]+(/.*)?", storage):
            raise ValueError(f"cluster.storage must be a path or s3://bucket/prefix, found {storage!r}")
        if "://" not in storage and not Path(storage).is_absolute():
            raise ValueError(f"cluster.storage must be an absolute path, the same on all machines, found {storage!r}")
        return self


class Architecture(Section):
    """architecture.yaml, in which search hands its choice to train; the depth is `len(widths) - 1`.

    `params` are values of params.yaml by dotted key that were searched too; `init` is a file of weights beside it.
    """

    widths: Widths
    params: dict[str, Any] = {}
    init: str | None = None
