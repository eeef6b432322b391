"""report.json, schema 2: every key that evaluate writes and others read; docs/measurements.md explains each.

None stands for a value that cannot be computed; NaN and infinity are refused, because JSON has neither.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = float | None
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A part of the report, with no other keys than these."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Cost(Part):
    """The costs of a depth on one device."""

    parameters: int
    macs: int
    latency_ms: float
    latency_p95_ms: Number  # None: too few rounds
    latency_p99_ms: Number
    latency_spread: float
    images_per_s: float
    best_batch: int
    peak_memory_mib: Number  # None: the runtime does not report it
    cold_start_ms: float
    size_mib: float


class Depth(Cost):
    """All numbers of a depth, or of the mean of heads; the costs are those of the main device."""

    iou_image: Share
    iou_image_low: Share
    iou_image_high: Share
    iou_pixels: Share
    iou_paper: Share
    dice_image: Share
    dice_image_low: Share
    dice_image_high: Share
    dice_pixels: Share
    dice_paper: Share
    miou: Share | None = None  # over all named classes and the pixels of all images; not in earlier reports
    object_f1: Share
    object_f1_low: Share
    object_f1_high: Share
    dsb_ap: Share
    dsb_ap_low: Share
    dsb_ap_high: Share
    boundary_f1: Share | None  # None, like hd95_px: no image has an outline outside ignored pixels
    boundary_f1_low: Share | None
    boundary_f1_high: Share | None
    difference_iou: float
    difference_iou_low: float
    difference_iou_high: float
    difference_ap: float
    difference_ap_low: float
    difference_ap_high: float
    precision: Share | None
    recall: Share | None
    hd95_px: Number
    ece: Share | None
    threshold: Share | None
    iou_image_at_threshold: Share | None
    iou_image_seen: Share | None = None  # at the size that the network sees; not in earlier reports


class Candidate(Part):
    name: str
    below_best: float
    below_best_low: float
    below_best_high: float
    below_best_ap: Number = None  # these three if the model separates objects: its depths are also judged by AP
    below_best_ap_low: Number = None
    below_best_ap_high: Number = None
    within_tolerance: bool  # in every score by which depths are judged
    within_budget: bool
    why: str


class Decision(Part):
    tolerance_iou: float
    tolerance_ap: Number = None  # not in earlier reports
    max_latency_ms: Number
    max_memory_mib: Number
    max_parameters: int | None
    engine: str = "torch"  # its latency and memory are compared with the limits
    candidates: list[Candidate]


class Intervals(Part):
    level: Share
    resamples: int
    over: Literal["groups"]


class ByClass(Part):
    iou_image: Share | None
    dice_image: Share | None
    precision: Share | None
    recall: Share | None
    boundary_f1: Share | None
    hd95_px: Number
    object_f1: Share | None
    dsb_ap: Share | None


class BySize(Part):
    object_recall: Share | None
    object_iou: Share | None


class ByKind(Part):
    iou_image: Share
    dice_image: Share
    boundary_f1: Share | None
    object_f1: Share


class Size(BaseModel):
    """Objects of one size; the other keys are names of depths."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, BySize]  # pyright: ignore[reportIncompatibleVariableOverride] - as pydantic says

    num_objects: int
    from_px: Number
    to_px: Number


class Kind(BaseModel):
    """Images of one kind; the other keys are names of depths."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, ByKind]  # pyright: ignore[reportIncompatibleVariableOverride] - as pydantic says

    num_images: int


class Groups(Part):
    class_: Annotated[dict[str, dict[str, ByClass]], Field(alias="class")]
    size: dict[Literal["small", "medium", "large"], Size]
    kind: dict[str, Kind]


class Bin(Part):
    confidence: Share | None
    accuracy: Share | None
    share: Share


class Gate(Part):
    name: Literal["flips", "shift", "brightness", "empty"]
    value: Share | None  # None: no foreground was predicted, so there was nothing to compare
    limit: Share
    direction: Literal["at least", "at most"]
    passed: bool | None  # None: it does not apply to these data, as `what` says
    what: str


class Device(Part):
    """The costs on one of the available devices."""

    device: Literal["cpu", "cuda"]
    main: bool
    machine: dict[str, str | int | float]
    depths: dict[str, Cost]


class Engine(Part):
    """A depth in one runtime at one precision; the costs are those of the machine that evaluated."""

    depth: str
    engine: str
    file: str | None  # in the folder of exports; None for torch, which needs none
    sha256: str | None
    latency_ms: float
    latency_p95_ms: Number
    images_per_s: float
    peak_memory_mib: Number
    size_mib: Number
    test_images: int
    test_iou_image: Share | None
    test_difference_iou: Number
    val_images: int
    val_iou_image: Share | None
    val_difference_iou: Number
    test_ap: Share | None = None  # these four if the model separates objects
    test_difference_ap: Number = None
    val_ap: Share | None = None
    val_difference_ap: Number = None
    within: bool
    auto: bool
    why: str


class Engines(Part):
    tolerance_iou: float
    num_val_images: int  # in the split
    val_images: int  # scored, at most
    rows: list[Engine]
    left_out: list[str]


class Tta(Part):
    """The gain on val, at a depth, from averaging over mirrored and turned copies of each image."""

    depth: str
    copies: Literal["flips", "all"]
    num_images: int
    iou_image: Share
    gain_iou: float
    gain_iou_low: float
    gain_iou_high: float
    cost_factor: float


class Objects(Part):
    """Which objects the scores of objects compare."""

    true: Literal["numbers", "components", "both"]  # numbers in the data, or connected pixels; both: by image
    predicted: Literal["watershed", "components"]
    remark: str  # how depths differ more for objects than for masks; "" if that is not shown


class Sample(Part):
    """One of the images in the page's viewer."""

    id: str
    kind: str
    group: str
    rank: Literal["best", "median", "worst"] | None


class Test(Part):
    sha256: str
    kinds: dict[str, int]


class Report(Part):
    """The whole file."""

    schema_: Annotated[Literal[2], Field(alias="schema")]
    recommended_depth: int | None
    nearest_depth: int | None
    recommendation: str
    num_images: int
    num_groups: int
    intervals: Intervals
    decision: Decision
    depths: dict[str, Depth]
    groups: Groups
    reliability: dict[str, Annotated[list[Bin], Field(min_length=10, max_length=10)]]
    gates: dict[str, list[Gate]]
    engines: Engines | None = None
    tta: list[Tta] = []
    runtimes: list[dict[str, Any]] = []  # in earlier reports, which have no `engines`
    objects: Objects | None = None  # None in earlier reports, where all objects were connected pixels
    samples: list[Sample]
    machine: dict[str, str | int | float]
    devices: list[Device]
    test: Test
    classes: dict[str, dict[str, Number]]
    background: bool = True  # the first of `classes` is value 1 of a mask; False: value 0, which is not background
    leaks: list[str] = []  # what a model may know of the test split from train
    size_px: int | tuple[int, int] | None = None  # the size to which whole images are resized, if any
    multilabel: bool  # the classes are labels, which may overlap
    model_sha256: str  # of the measured model file
