"""What `mlflow models serve` and `mlflow.pyfunc.load_model` run for a registered version.

A registered model holds weights and numbers, and no code: its MLmodel file names this module of the installed package.
Forms of requests and answers: docs/serving.md.
"""

import base64
import binascii
import json
import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.types import ParamSchema, ParamSpec

from pipelines.core.checksums import check_seal
from unetpp.engines.engine import Engine
from unetpp.engines.torch_engine import TorchEngine
from unetpp.errors import FileError, UserError
from unetpp.images.decode import decode_image
from unetpp.images.pictures import Limits
from unetpp.images.pixels import convert
from unetpp.inference.tiles import predict_image, to_mask
from unetpp.models.model_file import Trained, load_model

MODES = ("single", "mean", "probabilities")
ENCODINGS = ("array", "png")
MAX_PIXELS = 100_000_000  # of all images of a request; a small file can declare more than a machine has memory for


def params_schema(depth: int) -> ParamSchema:
    """The inference params of a version of that depth."""
    return ParamSchema(
        [
            ParamSpec("depth", "long", depth),
            ParamSpec("threshold", "double", 0.5),
            ParamSpec("mode", "string", "single"),
            ParamSpec("encoding", "string", "array"),
        ]
    )


class Request(NamedTuple):
    """Inference params, checked."""

    depth: int
    threshold: float
    mode: str
    encoding: str


class RequestError(MlflowException):
    """A refused request. MLflow writes the whole input before a message, megabytes of base64; this has its own."""

    def __init__(self, reason: str, code: int = BAD_REQUEST):
        super().__init__(reason, error_code=code)
        self.reason = reason

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self.reason})


def _load_pyfunc(path: str) -> "Served":
    """What MLflow calls with the folder of a model; its bytes are checked first."""
    check_seal(Path(path))
    return Served(load_model(path))


class Served:
    """A trained network as MLflow asks it: images in any form, masks or probabilities out."""

    def __init__(self, trained: Trained):
        self.trained = trained
        self._engines: dict[tuple[int, bool], Engine] = {}
        # One image in memory and at work at a time: threads of many requests would only share the processors, and the
        # memory of the machine bounds one image and not as many as there are images and clients.
        self._turn = threading.Lock()

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Answer a request.

        Raises:
            RequestError: with status 400 and the reason, or 500 for a fault of ours, which the log explains.
        """
        try:
            request = self._check(params or {})
            entries, single = _entries(data, self.trained.network.in_channels)
            if not entries:
                raise UserError("found no image; expected at least one")
            answers, left = [], MAX_PIXELS
            for number, entry in enumerate(entries, start=1):
                with self._turn:
                    with _named_image(number, len(entries)):
                        image = _image(entry, self.trained.network.in_channels, left)
                    left -= image.shape[0] * image.shape[1]
                    answers.append(self._answer(image, request))
                    del image
        except UserError as error:
            raise RequestError(str(error)) from None
        except RequestError:
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("a request failed")
            raise RequestError(f"the server failed ({type(error).__name__}); see its log", INTERNAL_ERROR) from None
        if single:
            return answers[0]
        arrays = [one for one in answers if isinstance(one, np.ndarray)]
        return np.stack(arrays) if len({one.shape for one in arrays}) == 1 else answers

    def engine(self, depth: int, mean: bool) -> Engine:
        """What computes a depth, made at its first use."""
        if (depth, mean) not in self._engines:
            heads = dict.fromkeys((one for one in self.trained.depths if one <= depth), 1.0)
            made = self.trained.ensemble(heads) if mean else self.trained.segmenter(depth)
            self._engines[depth, mean] = TorchEngine(made, self.trained.about.at(depth))
        return self._engines[depth, mean]

    def _check(self, params: dict[str, Any]) -> Request:
        known = {spec.name: spec.default for spec in params_schema(self.trained.network.depth).params}
        request = Request(**(known | {key: value for key, value in params.items() if key in known}))
        network = self.trained.network
        if request.depth not in network.depths:
            depths = ", ".join(map(str, network.depths))
            raise UserError(f"depth: found {request.depth}; this version answers at {depths}")
        if not 0 < request.threshold < 1:
            raise UserError(f"threshold: found {request.threshold:g}; expected a number between 0 and 1")
        if request.mode not in MODES:
            raise UserError(f"mode: found {request.mode!r}; expected one of {', '.join(MODES)}")
        if request.encoding not in ENCODINGS:
            raise UserError(f"encoding: found {request.encoding!r}; expected one of {', '.join(ENCODINGS)}")
        if request.encoding == "png" and request.mode == "probabilities":
            raise UserError("encoding: found png, and probabilities are no picture: set it to array, or mode to single")
        if request.threshold != 0.5 and network.num_classes > 1 and not network.multilabel:
            raise UserError(
                f"threshold: found {request.threshold:g}; of several classes the likeliest is taken, without a "
                "threshold: leave it out, or ask for mode probabilities"
            )
        return request

    def _answer(self, image: np.ndarray, request: Request) -> np.ndarray | str:
        probs = predict_image(self.engine(request.depth, mean=request.mode == "mean"), image)
        if request.mode == "probabilities":
            return probs  # (num_classes, H, W)
        mask = to_mask(probs[None], self.trained.network.multilabel, request.threshold)[0]  # (H, W)
        return mask if request.encoding == "array" else _png(mask, self.trained)


@contextmanager
def _named_image(number: int, count: int) -> Iterator[None]:
    try:
        yield
    except FileError as error:
        limit = f"what is left of this server's {MAX_PIXELS} px a request"
        reason = error.reason.replace("prepare.max_pixels", limit)
        fix = error.fix.replace("raise the limit", "send fewer images at once")
        raise UserError(f"image {number} of {count}: {reason}: {fix}") from None
    except UserError as error:
        raise UserError(f"image {number} of {count}: {error}") from None


def _entries(data: Any, channels: int) -> tuple[list, bool]:
    """The images of a request for a network of so many channels, as they came, and whether it was one alone."""
    if hasattr(data, "columns"):  # a pandas table
        if "image" not in data.columns and len(data.columns) != 1:
            raise UserError(f"found the columns {', '.join(map(str, data.columns))}; expected a column image")
        return list(data["image"] if "image" in data.columns else data.iloc[:, 0]), False
    if isinstance(data, dict):
        return _entries(_named(data), channels)
    if isinstance(data, bytes | bytearray | str):
        return [data], True
    if isinstance(data, np.ndarray) and data.dtype.kind in "OUS":
        return ([data.item()], True) if data.ndim == 0 else (list(data), False)
    if isinstance(data, np.ndarray):
        if data.ndim not in (2, 3, 4):
            raise UserError(
                f"found an array of shape {data.shape}; expected (H, W), (H, W, C), (N, H, W) or (N, H, W, C)"
            )
        return ([data], True) if _is_one(data, channels) else (list(data), False)
    if isinstance(data, list | tuple) and data and isinstance(data[0], int | float):
        raise UserError("found a list of numbers; expected an image of two dimensions at least")
    if isinstance(data, list | tuple):
        return list(data), False
    raise UserError(f"found {type(data).__name__}; expected arrays of pixels, or PNG, JPEG or TIFF files as base64")


def _named(entry: dict) -> Any:
    if set(entry) == {"image"} or set(entry) == {"b64"}:
        return next(iter(entry.values()))
    raise UserError(f"found the keys {', '.join(map(str, entry)) or '(none)'}; expected image alone")


def _is_one(array: np.ndarray, channels: int) -> bool:
    """Whether it is (H, W) or (H, W, C), and not a stack of images; grey and RGB may have alpha."""
    fitting = range(1, 5) if channels in (1, 3) else (channels,)
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] in fitting)


def _image(entry: Any, channels: int, max_pixels: int) -> np.ndarray:
    """One image as (H, W, channels) uint8, or uint16 or float32 where it came as a file of those."""
    if isinstance(entry, dict):
        entry = _named(entry)
    if isinstance(entry, np.ndarray) and entry.ndim == 0:
        entry = entry.item()
    if isinstance(entry, str):
        try:
            entry = base64.b64decode("".join(entry.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"found text that is not base64 ({error}); expected a PNG, JPEG or TIFF file") from None
    if isinstance(entry, bytes | bytearray):
        return _decode(bytes(entry), channels, max_pixels)
    try:
        array = np.asarray(entry)
    except ValueError:
        raise UserError("found rows of different lengths; expected pixels (H, W) or (H, W, C)") from None
    return _from_pixels(array, channels, max_pixels)


def _decode(content: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """A file's bytes, read as the pipeline reads files."""
    with tempfile.NamedTemporaryFile(prefix="unetpp-") as file:  # the readers of TIFF and of 16 bits need a path
        file.write(content)
        file.flush()
        return decode_image(file.name, channels, limits=Limits(max_pixels=max_pixels))


def _from_pixels(array: np.ndarray, channels: int, max_pixels: int) -> np.ndarray:
    if not _is_one(array, channels) or 0 in array.shape:
        wanted = "(H, W) or (H, W, C) with C from 1 to 4" if channels in (1, 3) else f"(H, W, {channels})"
        raise UserError(f"found an array of shape {array.shape}; expected {wanted}")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise UserError(
            f"found {array.shape[0]} x {array.shape[1]} pixels; expected at most {max_pixels}, what is left of this "
            f"server's {MAX_PIXELS} px a request: send fewer images at once"
        )
    if array.dtype not in (np.uint8, np.uint16):
        # JSON has one kind of whole number, which numpy reads as int64.
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            found = array.dtype if array.dtype.kind not in "iu" else f"values from {array.min()} to {array.max()}"
            raise UserError(
                f"found {found}; expected whole numbers from 0 to 255 (uint8): images of 16 bits or of floats are sent "
                "as PNG or TIFF files"
            )
        array = array.astype(np.uint8)
    array = array[:, :, None] if array.ndim == 2 else array
    if channels in (1, 3):
        return convert(array[:, :, : 1 if array.shape[2] < 3 else 3], channels)  # alpha is dropped, as of files
    if array.shape[2] != channels:
        raise UserError(f"found an array of shape {array.shape}; expected (H, W, {channels})")
    return np.ascontiguousarray(array)


def _png(mask: np.ndarray, trained: Trained) -> str:
    """A mask as a PNG file in base64: 0 and 255, class indices, or bits of labels."""
    import cv2  # in the package's requirements; an answer of arrays needs none

    binary = trained.network.num_classes == 1 and not trained.network.multilabel
    encoded, content = cv2.imencode(".png", mask * np.uint8(255) if binary else mask)
    assert encoded
    return base64.b64encode(content.tobytes()).decode()
