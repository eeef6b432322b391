"""Networks that need no training: what is bright is foreground."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unetpp import NestedUNet
from unetpp.models.model_file import Trained
from unetpp.network.masks import FOR_INSTANCES


def bright_network(**named) -> NestedUNet:
    """Of depth 1 and one channel: every weight but a path of ones is nothing. Its last class is what is bright."""
    network = NestedUNet((2, 3), in_channels=1, **named)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for name in ("0_0", "0_1"):
            for n in (1, 2):
                node = network.nodes[name]
                getattr(node, f"conv{n}").weight[0, 0, 1, 1] = 1
                getattr(node, f"norm{n}").weight.fill_(1)
        network.get_parameter("heads.1.weight")[-1, 0] = 10
        network.get_parameter("heads.1.bias")[-1] = -5
    return network.eval()


def parting_network() -> NestedUNet:
    """A `bright_network` that parts objects: they have a grey rim (`write_touching`) and a bright middle."""
    network = bright_network(targets=FOR_INSTANCES)
    with torch.no_grad():
        network.get_parameter("heads.1.weight")[0, 0] = 10
        network.get_parameter("heads.1.bias").copy_(torch.tensor([-5.0, -20.0, -30.0]))  # mask, boundary, distance
    return network


def write_touching(path: Path) -> np.ndarray:
    """A dark picture with two squares of 7 x 7 pixels that touch; returns their numbers."""
    image, numbers = np.zeros((30, 45), np.uint8), np.zeros((30, 45), np.int32)
    for number, left in ((1, 10), (2, 17)):
        image[5:12, left : left + 7], image[6:11, left + 1 : left + 6] = 120, 255
        numbers[5:12, left : left + 7] = number
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return numbers


def save(folder: Path, info: dict | None = None, **named) -> Path:
    """The folder with the model file of a `bright_network`."""
    folder.mkdir(parents=True)
    Trained(bright_network(**named), None, info or {}).save(folder / "model.safetensors")
    return folder


def write(path: Path, size: tuple[int, int] = (30, 45)) -> np.ndarray:
    """A dark picture with a bright rectangle of 15 rows and 20 columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros(size, np.uint8)
    image[5:20, 10:30] = 255
    Image.fromarray(image).save(path)
    return image
