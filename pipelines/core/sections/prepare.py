"""Section prepare of params.yaml."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipelines.core.sections.section import NonNegativeInt, PositiveInt, Section, Share
from unetpp.images.frame import Frame, frame_of
from unetpp.network.masks import MAX_LABELS

# Of a folder's name or a category; background needs none. Predicted labels are written to folders of these names.
ClassName = Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*$")]


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
    sequences: Literal["auto", "none"]

    @model_validator(mode="after")
    def _one_way(self):
        if self.pattern is not None and self.table is not None:
            raise ValueError("found a pattern and a table; expected one of them: set the other to null")
        if self.pattern is not None:
            try:
                num_groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"pattern is not a regular expression ({error}), found {self.pattern!r}") from None
            if num_groups != 1:
                raise ValueError(
                    f"pattern must have one group in parentheses, such as ^(patient\\d+)_, found {num_groups} in "
                    f"{self.pattern!r}; parentheses that are not a group begin with (?:"
                )
        return self


class NearDuplicates(Section):
    distance: Annotated[int, Field(ge=0, le=15)]
    correlation: Annotated[float, Field(gt=0, le=1)]


Side = Annotated[int, Field(ge=16, le=8192)]


def _check_size(value):
    """Check for a side, or height and width; the error is one sentence."""
    sides = list(value) if isinstance(value, list | tuple) else [value]
    whole = all(str(one).isdecimal() and 16 <= int(one) <= 8192 and not isinstance(one, bool) for one in sides)
    if value is None or (whole and len(sides) in (1, 2) and (len(sides) == 2 or not isinstance(value, list | tuple))):
        return value
    raise ValueError(f"expected null, a side of 16 to 8192 px, or [height, width], found {value!r}")


COLOUR = re.compile(r"#[0-9a-f]{6}")
RESERVED = ("background", "ignore")  # in prepare.values


def _check_values(value):
    """Check for {value or colour: name}; the error is one sentence."""
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise ValueError(f"expected null or {{value: name}}, such as {{0: background, 255: road}}, found {value!r}")
    found: dict[int | str, str] = {}
    for given, name in value.items():
        stored = str(given).lower()
        stored = int(stored) if stored.isdecimal() else stored  # JSON keys are always text
        if isinstance(given, bool) or not (stored <= 65535 if isinstance(stored, int) else COLOUR.fullmatch(stored)):
            raise ValueError(f"expected values of 0 to 65535, or colours such as '#ff0000', found {given!r}")
        if not isinstance(name, str) or not name:
            raise ValueError(f"expected a class, background or ignore for the value {given!r}, found {name!r}")
        if stored in found:
            raise ValueError(f"found {given!r} twice; expected each value once")
        found[stored] = name
    if len({type(stored) for stored in found}) > 1:
        raise ValueError("found values and colours; expected one of the two: name all by value, or all by colour")
    return found


class Prepare(Section):
    size: Annotated[Side | tuple[Side, Side] | None, BeforeValidator(_check_size)]
    fit: Literal["stretch", "pad"]
    channels: Annotated[int, Field(ge=1, le=16)]
    num_classes: Annotated[int, Field(ge=1, le=255)]
    split: Annotated[str, Field(min_length=1)]
    shares: Shares
    salt: str
    max_quarantined: Share
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] | None
    background: bool
    values: Annotated[dict[int | str, str] | None, BeforeValidator(_check_values)]
    kinds: Annotated[str, Field(min_length=1)]
    pages: Literal["refuse", "slices"]
    no_foreground: Literal["refuse", "allow"]
    max_pixels: PositiveInt
    max_file_mib: PositiveInt
    num_workers: Annotated[int, Field(ge=1, le=256)]
    groups: Groups
    near_duplicates: NearDuplicates | None
    folds: Annotated[int, Field(ge=2, le=100)] | None
    fold: NonNegativeInt
    multilabel: bool
    ignore: Annotated[int, Field(ge=1, le=65535)] | None
    mask_threshold: Annotated[int, Field(ge=1, le=65535)] | None

    @property
    def frame(self) -> Frame | None:
        """The size that whole images are brought to, if any."""
        return frame_of(self.size, self.fit)

    @model_validator(mode="after")
    def _padded_to_a_size(self):
        if self.fit == "pad" and self.size is None:
            raise ValueError(
                "prepare.fit is pad, and prepare.size is null, so that images keep their own size: set prepare.size to "
                "[height, width], or prepare.fit to stretch"
            )
        return self

    @model_validator(mode="after")
    def _classes_counted(self):
        if self.classes is None:
            return self
        if len({name.casefold() for name in self.classes}) < len(self.classes):
            raise ValueError(f"prepare.classes must differ, found {', '.join(self.classes)}")
        if self.multilabel and self.num_classes != len(self.classes):
            raise ValueError(
                f"prepare.num_classes is {self.num_classes} and prepare.classes names {len(self.classes)}: with "
                f"prepare.multilabel set it to {len(self.classes)}, as background is not a label"
            )
        if not self.background:
            if self.num_classes != len(self.classes):
                raise ValueError(
                    f"prepare.num_classes is {self.num_classes} and prepare.classes names {len(self.classes)}: without "
                    f"prepare.background set it to {len(self.classes)}, as the first of them is class 0"
                )
        elif not self.multilabel and self.num_classes not in (1, len(self.classes) + 1):
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
    def _background_fits(self):
        if not self.background and (self.multilabel or self.num_classes == 1):
            what = "labels have no class 0" if self.multilabel else "prepare.num_classes is 1, foreground alone"
            raise ValueError(f"prepare.background is false, and {what}: set it to true, or count the class of value 0")
        return self

    @model_validator(mode="after")
    def _values_fit(self):
        if self.values is None:
            return self
        names = list(dict.fromkeys(name for name in self.values.values() if name not in RESERVED))
        if not names:
            raise ValueError("prepare.values names no class: name at least one value by its class")
        if self.num_classes > 1 and self.classes is None:
            raise ValueError(
                f"prepare.values names {', '.join(names)}, and prepare.classes is null: set prepare.classes=["
                f"{', '.join(names)}], in the order of their class indices"
            )
        if self.num_classes > 1 and (strange := [name for name in names if name not in (self.classes or ())]):
            raise ValueError(
                f"prepare.values names {strange[0]!r}, and prepare.classes has {', '.join(self.classes or ())}: add it "
                "there, or call the value background or ignore"
            )
        if not self.background and "background" in self.values.values():
            raise ValueError(
                "prepare.background is false, and prepare.values calls a value background: call it by a class or ignore"
            )
        if self.mask_threshold is not None and set(self.values) != {0, 255}:
            raise ValueError(
                f"prepare.mask_threshold is {self.mask_threshold}, which leaves 0 and 255, and prepare.values names "
                f"{', '.join(map(str, self.values))}: name 0 and 255 alone, or set prepare.mask_threshold to null"
            )
        if self.ignore is not None and (said := self.values.get(self.ignore, "ignore")) != "ignore":
            raise ValueError(
                f"prepare.ignore is {self.ignore}, which prepare.values calls {said!r}: change one of them"
            )
        if self.ignore is not None and isinstance(next(iter(self.values)), str):
            raise ValueError(
                f"prepare.ignore is {self.ignore}, and prepare.values names colours: add the colour of unlabelled "
                "pixels there, as ignore, and set prepare.ignore to null"
            )
        return self

    @model_validator(mode="after")
    def _ignore_is_no_class(self):
        if self.values is not None:
            return self  # stored values are not class indices
        highest = self.num_classes if self.multilabel or self.num_classes == 1 else self.num_classes - 1
        if self.ignore is not None and self.ignore <= highest:
            raise ValueError(
                f"prepare.ignore is {self.ignore}, which is a class: masks hold 0 to {highest} by prepare.num_classes; "
                "set it to the value of unlabelled pixels, or to null"
            )
        return self

    @model_validator(mode="after")
    def _fold_exists(self):
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(
                f"fold is {self.fold} and counts from 0, so of {self.folds} folds the last is {self.folds - 1}"
            )
        return self
