"""Models that earlier versions wrote, still read: torch's zip, and safetensors with the network in config.json."""

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
    """What a model file holds."""

    config: dict[str, Any]  # the keywords of the network
    weights: dict[str, Tensor]
    size: int | Sequence[int] | None
    info: dict[str, Any]
    sha256: str  # of the file
    fit: Fit = "stretch"


def read_zip(file: Path, fix: str) -> Contents:
    """A model.pt, after the sums of its parts were compared, which torch itself does not do.

    Raises:
        UserError: it is damaged, or none; it ends with `fix`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for part in archive.infolist():
                if part.compress_type != zipfile.ZIP_STORED:  # a small file that grows is no model
                    raise ValueError(f"{part.filename} is compressed")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} has another CRC-32 than the file says")
        content = torch.load(file, map_location="cpu", weights_only=True)
        if content["format"] != 2:
            raise ValueError(f"format {content['format']}, and this version reads format 2")
        if not all(isinstance(one, Tensor) and one.is_contiguous() for one in content["weights"].values()):
            raise ValueError("tensors that claim more than they hold")
        return Contents(content["config"], content["weights"], content["size"], content["info"], sha256(file))
    except Exception as error:
        raise UserError(f"{file}: not a model of this project, or damaged ({said(error)}); {fix}") from None


def read_pair(file: Path, fix: str) -> Contents:
    """A model.safetensors whose network and sha256 stand in the config.json beside it.

    Raises:
        UserError: another file than config.json says, or no such pair; it ends with `fix`.
    """
    path = file.parent / CONFIG
    config = read_json(path, fix, ("format", "version", "sha256", "network", "size", "info"))
    if (config["format"], config["version"]) != ("unetpp", 1):
        raise UserError(f"{path}: found format {config['format']!r} version {config['version']!r}; {fix}")
    check_sha256(file, sha256(file), config["sha256"], f"it is damaged, or of another export than {CONFIG}; {fix}")
    weights = read_tensors(file.read_bytes(), file, fix)
    return Contents(config["network"], weights, config["size"], config["info"], config["sha256"])


def read_tensors(content: bytes, file: Path, fix: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file's bytes.

    Raises:
        UserError: they are none; it ends with `fix`.
    """
    from safetensors import SafetensorError  # late: a network is used without files, too
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{file}: not safetensors ({error}); {fix}") from None
