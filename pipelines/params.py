"""params.yaml as one frozen model: the only reader of the file, and the only list of legal values.

No default stands here for what params.yaml holds. A wrong, missing or unknown key is refused with its
dotted path and, for an unknown one, the nearest that exists.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from unetpp.errors import UserError

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


class Evaluate(Section):
    tolerance_iou: Annotated[float, Field(ge=0, le=1)]
    max_latency_ms: PositiveFloat | None
    latency_rounds: Annotated[int, Field(ge=3)]
    latency_size_px: PositiveInt | None
    throughput_batch: PositiveInt


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


class Params(Section):
    """All of params.yaml, one attribute a section."""

    ingest: Ingest
    prepare: Prepare
    model: Model
    search: Search
    train: Train
    augment: Augment
    evaluate: Evaluate
    # `register` itself is a method of every Python class, so the attribute has another name than the section.
    registry: Annotated[Register, Field(alias="register")]
    cluster: Cluster

    @model_validator(mode="after")
    def _trials_divisible(self):
        if self.train.batch_size % self.search.num_workers:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size} and must be a multiple of search.num_workers, "
                f"which is {self.search.num_workers}"
            )
        return self

    @model_validator(mode="after")
    def _a_weight_for_each_class(self):
        weights, num_classes = self.train.class_weights, self.prepare.num_classes
        if weights is not None and self.train.loss in ("lovasz", "tversky"):
            raise ValueError(
                f"train.class_weights weigh a cross-entropy, and train.loss is {self.train.loss}, which has none: set "
                "one of the two to another value"
            )
        if isinstance(weights, tuple) and len(weights) != max(2, num_classes):
            raise ValueError(
                f"train.class_weights has {len(weights)} weights; expected {max(2, num_classes)}, the background's "
                f"first, as prepare.num_classes is {num_classes}"
            )
        return self

    @model_validator(mode="after")
    def _heads_weighted(self):
        weights, deepest = self.train.head_weights, max(len(widths) for widths in self.search.widths) - 1
        if not isinstance(weights, str) and len(weights) < deepest:
            raise ValueError(
                f"train.head_weights has {len(weights)} numbers, and search.widths holds a network of depth {deepest}: "
                "give one for each depth, the shallowest first"
            )
        return self

    @model_validator(mode="after")
    def _sizes_known(self):
        if self.prepare.size is None and self.train.crop_px is None:
            raise ValueError("prepare.size is null, so images differ in size: set train.crop_px to the size of a crop")
        return self


def _known_keys(model: type[BaseModel], path: tuple) -> list[str]:
    """The keys legal in the section at a dotted path, for the nearest-name hint."""
    for name in path:
        fields = {field.alias or key: field.annotation for key, field in model.model_fields.items()}
        inner = fields.get(name)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return [field.alias or key for key, field in model.model_fields.items()]


def _explain(error: dict) -> str:
    """One line of a validation error: dotted path, what was found, what to do."""
    path = tuple(error["loc"])
    key = ".".join(str(part) for part in path)
    if error["type"] == "extra_forbidden":
        known = _known_keys(Params, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{key}: missing; every key must be present"
    if error["type"] == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, found {error['input']!r}"


# Names of keys and shapes of values that hold credentials. They never belong into a file that git keeps.
SECRET_KEYS = re.compile(r"secret|password|passwd|token|credential|access_?key|api_?key", re.IGNORECASE)
SECRET_VALUES = {
    "an AWS access key id": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a password in an address": re.compile(r"\w://[^/\s@]*:[^/\s@]+@"),
    "a signed address": re.compile(r"[?&](X-Amz-\w+|Signature|sig|token)=", re.IGNORECASE),
}


def _refuse_credentials(value, path: Path, key: str = "") -> None:
    """Refuse what looks like a credential, by its dotted key; the value itself is never shown."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_credentials(inner, path, f"{key}.{name}" if key else str(name))
        return
    found = [what for what, shape in SECRET_VALUES.items() if isinstance(value, str) and shape.search(value)]
    if value is not None and SECRET_KEYS.search(key.rpartition(".")[2]):
        found.append("a credential")
    if found:
        raise UserError(
            f"{path}: {key}: found what looks like {found[0]} (not shown here); params.yaml is kept by git and logged, "
            "so it must hold none: for S3 use a profile (ingest.s3.profile), the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY) or the machine's role, for MLflow MLFLOW_TRACKING_URI; remove the key"
        )


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: the file is missing, is not YAML, holds a wrong, missing or unknown key, or a credential.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; run from the project's folder, where params.yaml lies")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as ingest and train, found {type(values).__name__}")
    _refuse_credentials(values, path)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = [_explain(dict(one)) for one in error.errors()]
        raise UserError(f"{path}: " + "\n".join(lines)) from None
