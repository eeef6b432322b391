"""The sections export, evaluate, register and cluster of params.yaml."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.core.sections.section import PositiveFloat, PositiveInt, Section, Share


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
    tolerance_ap: Annotated[float, Field(ge=0, le=1)]
    max_latency_ms: PositiveFloat | None
    engine: Literal[
        "torch",
        "torch-bf16",
        "torch-fp16",
        "onnxruntime",
        "onnxruntime-int8",
        "openvino",
        "openvino-bf16",
        "openvino-int8",
    ]
    tolerance_engine_iou: Annotated[float, Field(ge=0, le=1)]
    tta: Literal["none", "flips", "all"]
    latency_rounds: Annotated[int, Field(ge=3)]
    latency_size_px: PositiveInt | None
    throughput_batch: PositiveInt
    max_memory_mib: PositiveFloat | None
    max_parameters: PositiveInt | None
    boundary_tolerance_px: PositiveFloat
    object_sizes_px: Annotated[tuple[PositiveFloat, PositiveFloat] | None, AfterValidator(_check_sizes)]
    page_images: Annotated[int, Field(ge=3)]
    gates: Gates


def _check_name(name: str) -> str:
    if re.search(r"[\x00-\x1f\x7f/\\:.%\"'#?@]", name) or name != name.strip():
        raise ValueError(
            "expected a name that may stand in models:/NAME@ALIAS, without any of / \\ : . % \" ' # ? @ and without "
            f"spaces around it, found {name!r}"
        )
    return name


Name = Annotated[str, Field(min_length=1, max_length=256)]  # limit of MLflow's database


class Register(Section):
    experiment: Name
    model_name: Annotated[Name, AfterValidator(_check_name)]
    tracking_uri: str | None
    live: bool
    promotion_tolerance_iou: Annotated[float, Field(ge=0, le=1)]
    promotion_tolerance_ap: Annotated[float, Field(ge=0, le=1)]
    promotion_min_images: PositiveInt
    licence: Annotated[str, Field(min_length=1, max_length=500)] | None
    intended_use: Annotated[str, Field(min_length=1, max_length=500)] | None


class Cluster(Section):
    storage: Annotated[str, Field(min_length=1)] | None
    cache: Annotated[str, Field(min_length=1)] | None
    address: Annotated[str, Field(pattern=r"^https?://[^/@\s]+/?$")] | None
    python: Annotated[str, Field(pattern=r"^\S(.*\S)?$")]  # a path may hold spaces

    @model_validator(mode="after")
    def _found_everywhere(self):
        storage = self.storage or "/"
        if "://" in storage and not re.fullmatch(r"s3://[^/]+(/.*)?", storage):
            raise ValueError(f"cluster.storage must be a path or s3://bucket/prefix, found {storage!r}")
        if "://" not in storage and not Path(storage).is_absolute():
            raise ValueError(f"cluster.storage must be an absolute path, the same on all machines, found {storage!r}")
        return self
