"""Read models of earlier versions: torch's zip, and safetensors with the network in config.json."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unetpp.errors import UserError, said
from unetpp.files import check_sha256, read_json, sha256
from unetpp.images.frame import Fit

CONFIG = "config.json"


class Contents(NamedTuple):
    """The content of a model file."""

    config: dict[str, Any]  # the keyword arguments of the network
    weights: dict[str, Tensor]
    size: int | Sequence[int] | None
    info: dict[str, Any]
    sha256: str  # of the file
    fit: Fit = "stretch"


def read_zip(file: Path, fix: str) -> Contents:
    """Read a model.pt after checking the sums of its parts, which torch itself does not do.

    Raises:
        UserError: damaged, or not a model; the message ends with `fix`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for part in archive.infolist():
                if part.compress_type != zipfile.ZIP_STORED:  # not a model, possibly a zip bomb
                    raise ValueError(f"{part.filename} is compressed")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} has another CRC-32 than the file says")
        content = torch.load(file, map_location="cpu", weights_only=True)
        if content["format"] != 2:
            raise ValueError(f"format {content['format']}, but this version reads format 2")
        if not all(isinstance(one, Tensor) and one.is_contiguous() for one in content["weights"].values()):
            raise ValueError("tensors that claim to be larger than their data")
        return Contents(content["config"], content["weights"], content["size"], content["info"], sha256(file))
    except Exception as error:
        raise UserError(f"{file}: not a model of this project, or damaged ({said(error)}); {fix}") from None


def read_pair(file: Path, fix: str) -> Contents:
    """Read a model.safetensors whose network and sha256 are in the config.json next to it.

    Raises:
        UserError: not such a pair, or another file than config.json names; the message ends with `fix`.
    """
    path = file.parent / CONFIG
    config = read_json(path, fix, ("format", "version", "sha256", "network", "size", "info"))
    if (config["format"], config["version"]) != ("unetpp", 1):
        raise UserError(f"{path}: found format {config['format']!r} version {config['version']!r}; {fix}")
    check_sha256(file, sha256(file), config["sha256"], f"it is damaged, or from another export than {CONFIG}; {fix}")
    weights = read_tensors(file.read_bytes(), file, fix)
    return Contents(config["network"], weights, config["size"], config["info"], config["sha256"])


def read_tensors(content: bytes, file: Path, fix: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file's bytes.

    Raises:
        UserError: not safetensors; the message ends with `fix`.
    """
    from safetensors import SafetensorError  # late: networks can be used without files
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{file}: not safetensors ({error}); {fix}") from None
