"""params.yaml as one frozen model: the only reader of the file, and the only list of valid values.

No default stands here for what params.yaml holds. A wrong, missing or unknown key is refused with its
dotted path and, for an unknown one, the nearest that exists.
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from pipelines.core.files import read_yaml
from pipelines.core.redaction import SECRET_KEYS, SECRET_VALUES, redacted
from pipelines.core.sections.delivery import Cluster, Evaluate, Export, Register
from pipelines.core.sections.ingest import Ingest
from pipelines.core.sections.prepare import Prepare
from pipelines.core.sections.search import Search
from pipelines.core.sections.section import Section
from pipelines.core.sections.train import HUB, Augment, Model, Train
from unetpp.errors import UserError
from unetpp.images.frame import as_size, plain
from unetpp.network.masks import MASK


class Params(Section):
    """All of params.yaml, one attribute per section."""

    ingest: Ingest
    prepare: Prepare
    model: Model
    search: Search
    train: Train
    augment: Augment
    export: Export
    evaluate: Evaluate
    # Pydantic's models have a method `register`, so the attribute has another name than the section.
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
    def _encoder_named(self):
        if self.model.encoder is None and "model.encoder" not in self.search.space:
            for key, value, plain_value in (
                ("model.encoder_weights", self.model.encoder_weights, None),
                ("train.encoder_lr", self.train.encoder_lr, 1.0),
                ("train.freeze_encoder_epochs", self.train.freeze_encoder_epochs, 0),
            ):
                if value != plain_value:
                    raise ValueError(
                        f"{key} is {value}, and model.encoder is null, so that there is none: set model.encoder, such "
                        f"as to resnet34, or {key} to {'null' if plain_value is None else plain_value}"
                    )
        return self

    @model_validator(mode="after")
    def _weights_of_each_encoder(self):
        weights = self.model.encoder_weights
        searched = list(dict.fromkeys(str(one) for one in self.search.space.get("model.encoder", ()) if one))
        if isinstance(weights, dict):
            missing = sorted({*searched, self.model.encoder or ""} - {"", *weights})
            if missing:
                raise ValueError(
                    f"model.encoder_weights has rows for {', '.join(weights) or 'no encoder'}, and none for "
                    f"{', '.join(missing)}: add `{missing[0]}: FILE`, with {HUB} or null in place of FILE if need be"
                )
        elif weights not in (None, HUB) and len(searched) > 1 and "model.encoder_weights" not in self.search.space:
            raise ValueError(
                f"model.encoder_weights is {weights}, a file for one encoder, and search.space has "
                f"{', '.join(searched)}: give each its own by {{{', '.join(f'{one}: FILE' for one in searched)}}}, or "
                f"{HUB} or null for all"
            )
        return self

    @model_validator(mode="after")
    def _targets_of_classes(self):
        if self.prepare.multilabel and self.model.targets != MASK:
            raise ValueError(
                "model.targets part the objects of classes of which one holds at a pixel, and prepare.multilabel is "
                "true: set model.targets to [mask]"
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
        weights, deepest = self.train.head_weights, self.search.deepest
        if not isinstance(weights, str) and len(weights) < deepest:
            raise ValueError(
                f"train.head_weights has {len(weights)} numbers, and search holds a network of depth {deepest}: "
                "give one for each depth, the shallowest first"
            )
        return self

    @model_validator(mode="after")
    def _sizes_known(self):
        if self.prepare.size is None and self.train.crop_px is None:
            raise ValueError("prepare.size is null, so images differ in size: set train.crop_px to the size of a crop")
        return self

    @model_validator(mode="after")
    def _turned_to_the_same_shape(self):
        size = as_size(self.prepare.size)
        if self.train.crop_px is None and size and size[0] != size[1] and self.augment.quarter_turns:
            raise ValueError(
                f"augment.quarter_turns is true, and prepare.size is {list(size)}: turned by 90 degrees such an image "
                "has another shape: set augment.quarter_turns to false, train.crop_px, or prepare.size to a square"
            )
        return self

    @model_validator(mode="after")
    def _levels_hold_pixels(self):
        check_levels(self, [*self.search.widths, *(self.search.grow.candidates() if self.search.grow else ())])
        return self

    @model_validator(mode="after")
    def _weights_are_of_classes(self):
        if self.prepare.multilabel and self.train.class_weights is not None:
            raise ValueError(
                "train.class_weights weigh classes of which one holds at a pixel, and prepare.multilabel is true: set "
                "train.class_weights to null; train.loss=focal_dice or tversky helps rare labels"
            )
        return self


def check_levels(params: Params, candidates: Iterable[Sequence[int]]) -> None:
    """Refuse networks, by their widths, that cannot be trained on images of the size of these params.

    Raises:
        UserError: 2^depth does not divide the size, or a norm layer of the deepest level would see single values.
    """
    train, norm = params.train, params.model.norm
    key, size = ("train.crop_px", train.crop_px) if train.crop_px else ("prepare.size", params.prepare.size)
    sides = as_size(size)
    if sides is None:
        return
    workers = 1 if train.sync_batchnorm else max(train.max_workers, params.search.num_workers)
    images = train.batch_size // workers // train.accumulate  # per process and pass
    for widths in candidates:
        depth, width = len(widths) - 1, widths[-1]
        step = 2**depth
        if any(side % step for side in sides):
            # Down and up, for a rectangle both sides at once.
            near = [tuple((side + up) // step * step for side in sides) for up in (0, step - 1)]
            fitting = " or ".join(str(plain(one)) for one in near if min(one))
            raise UserError(
                f"{key} is {plain(sides)}, and a network of the widths {' '.join(map(str, widths))} needs "
                f"sides divisible by {step}: set {key} to {fitting}, or search.widths and search.grow to fewer levels"
            )
        values = {"batch": images, "instance": 1, "group": width // math.gcd(width, 8)}[norm]
        if params.model.encoder:  # whose norms are mostly batch norm
            values = min(values, images)
        if max(sides) == step and values == 1:
            raise UserError(
                f"{key} is {plain(sides)}, and the deepest level of a network of depth {depth} is 1x1 there: with "
                f"model.norm {norm} and {images} image(s) at once in a process a norm layer would see single values, "
                f"which have no spread: set {key} to {2 * step}, or search.widths and search.grow to fewer levels"
                + (", or raise train.batch_size" if norm == "batch" else "")
            )


def override(params: Params, changes: dict[str, Any]) -> Params:
    """The params with other values, by dotted key: {"train.learning_rate": 1e-3}.

    Raises:
        UserError: a key that does not exist, with the nearest that does, or a value that is not legal there.
    """
    values = params.model_dump(mode="json", by_alias=True)
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values
        for name in path:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            known = list(_dotted(values))
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            near = near or [one for one in known if one.rpartition(".")[2] == last][:1]
            hint = f"did you mean {near[0]}?" if near else "expected a key of params.yaml such as train.learning_rate"
            raise UserError(f"{key}: unknown key; {hint}")
        section[last] = value
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(dict(one)) for one in error.errors())) from None


def _dotted(values: dict, prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")


def _known_keys(model: type[BaseModel], path: tuple) -> list[str]:
    """The valid keys of the section at a dotted path, for the nearest-name hint."""
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
        return f"{key}: missing; every key must be present: `unetpp plan --accept` adds what a newer version knows"
    if error["type"] == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, found {redacted(repr(error['input']))}"


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
            "AWS_SECRET_ACCESS_KEY) or the machine's role, for MLflow MLFLOW_TRACKING_URI; fetch what needs a signed "
            "address yourself; remove the key"
        )


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: the file is missing, is not YAML, holds a wrong, missing or unknown key, or a credential.
    """
    path = Path(path)
    values = read_yaml(path, "run from the project's folder, whose params.yaml has sections such as ingest and train")
    _refuse_credentials(values, path)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = [_explain(dict(one)) for one in error.errors()]
        raise UserError(f"{path}: " + "\n".join(lines)) from None
