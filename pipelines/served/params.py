"""Inference params of a registered version: their MLflow schema, and checks."""

import json
import math
from typing import Any, NamedTuple

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.types import ParamSchema, ParamSpec

from unetpp.errors import UserError
from unetpp.models.about import About

MODES = ("single", "mean", "probabilities", "instances")
ENCODINGS = ("array", "png")
AUTO = "auto"


def params_schema(depth: int) -> ParamSchema:
    """The inference params of a version of this depth. Types never change: clients and old versions rely on them."""
    return ParamSchema(
        [
            ParamSpec("depth", "long", depth),
            ParamSpec("threshold", "double", 0.5),
            ParamSpec("mode", "string", "single"),
            ParamSpec("encoding", "string", "array"),
            ParamSpec("engine", "string", AUTO),
            ParamSpec("max_latency_ms", "double", 0.0),
            ParamSpec("degrade", "boolean", False),
            ParamSpec("details", "boolean", False),
        ]
    )


class Request(NamedTuple):
    """Inference params, checked."""

    depth: int  # the depth that answers; with a budget, the deepest one that may
    threshold: float
    mode: str
    encoding: str
    engine: str  # a name, or "auto"
    max_latency_ms: float  # 0: no budget
    degrade: bool
    details: bool


class RequestError(MlflowException):
    """A refused request. MLflow would put the whole input, megabytes of base64, before the message; this does not."""

    def __init__(self, reason: str, code: int = BAD_REQUEST):
        super().__init__(reason, error_code=code)
        self.reason = reason

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self.reason})


def check_params(params: dict[str, Any], about: About) -> Request:
    """Check the params of a request; unknown ones are ignored, and missing or null ones have their default.

    Raises:
        UserError: an illegal value, or values that contradict each other.
    """
    known = {spec.name: spec.default for spec in params_schema(about.depth).params}
    given = {key: value for key, value in params.items() if key in known and value is not None}
    request = Request(**(known | given))
    request = request._replace(depth=request.depth or about.depth)
    if request.depth not in about.depths:
        depths = ", ".join(map(str, about.depths))
        raise UserError(f"depth: found {request.depth}; this version answers at {depths}, and 0 is the deepest")
    if not 0 < request.threshold < 1:
        raise UserError(f"threshold: found {request.threshold:g}; expected a number between 0 and 1")
    if request.mode not in MODES:
        raise UserError(f"mode: found {request.mode!r}; expected one of {', '.join(MODES)}")
    if request.mode == "instances" and about.separation() is None:
        raise UserError(
            "mode: found 'instances', but this version only predicts masks; expected a version that separates "
            "objects: use mode single"
        )
    if request.encoding not in ENCODINGS:
        raise UserError(f"encoding: found {request.encoding!r}; expected one of {', '.join(ENCODINGS)}")
    if request.encoding == "png" and request.mode == "probabilities":
        raise UserError(
            "encoding: found png with mode probabilities, which a PNG cannot hold: set encoding to array, "
            "or mode to single"
        )
    if request.threshold != 0.5 and about.num_classes > 1 and not about.multilabel:
        raise UserError(
            f"threshold: found {request.threshold:g}; with several classes the most probable one is chosen, without a "
            "threshold: leave it out, or use mode probabilities"
        )
    if request.mode == "mean" and request.engine not in (AUTO, "torch"):
        raise UserError(
            f"engine: found {request.engine!r}; only torch computes the mean of several heads: leave out engine"
        )
    if not 0 <= request.max_latency_ms < math.inf:
        raise UserError(f"max_latency_ms: found {request.max_latency_ms:g}; expected milliseconds, or 0 for no budget")
    if request.degrade and not request.max_latency_ms:
        raise UserError("degrade: found true without max_latency_ms; set max_latency_ms, the budget in ms")
    return request
