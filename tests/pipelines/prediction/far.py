"""Images in a bucket, a model, and what the local command makes of the same images."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.predict import predict
from pipelines.prediction.work import RECORD
from tests.pipelines.storage.buckets import Bucket
from unetpp import NestedUNet
from unetpp.models.model_file import Trained

SIZES = ((32, 32), (40, 24), (17, 33))


def make_images(number: int) -> dict[str, bytes]:
    """PNGs by name, in two folders, of several sizes."""
    random, made = np.random.default_rng(0), {}
    for index in range(number):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (*SIZES[index % 3], 3), np.uint8)).save(buffer, "PNG")
        made[f"{'ab'[index % 2]}/{index:03}.png"] = buffer.getvalue()
    return made


def make_model(folder: Path, seed: int = 1) -> Path:
    """A network whose masks have both values, in a folder."""
    torch.manual_seed(seed)
    network = NestedUNet((4, 6, 8)).eval()
    folder.mkdir(parents=True, exist_ok=True)
    Trained(network, None).save(folder / "model.safetensors")
    return folder


def expected_masks(files: dict[str, bytes], model: Path, folder: Path) -> dict[str, bytes]:
    """What the local command writes of these images, by name."""
    for name, content in files.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_bytes(content)
    predict([str(folder / "in")], str(model), None, folder / "out")
    masks = {path.name: path.read_bytes() for path in (folder / "out").glob("*.png")}
    assert len(masks) == len(files)
    assert any(len(np.unique(np.array(Image.open(io.BytesIO(mask))))) == 2 for mask in masks.values())
    return masks


def masks_in(bucket: Bucket, prefix="out/") -> dict[str, bytes]:
    """What lies under a prefix but for the record."""
    listed = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=prefix)
    keys = [one["Key"] for page in listed for one in page.get("Contents", ())]
    return {
        key.removeprefix(prefix): bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
        for key in keys
        if not key.endswith(RECORD)
    }


def puts(bucket: Bucket) -> list[str]:
    """The paths of the objects that were written, but for the record."""
    return [one.path for one in bucket.proxy.requests if one.method == "PUT" and RECORD not in one.path]
