"""Encoders from timm. This is the only module that uses timm.

timm's pyramid returns feature maps of stride 1, 2, 4 ...; most networks have those of stride 2 to 32. Stages that no
map needs are dropped, so a network of depth d only contains the stages down to stride 2^d.
"""

import copy
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from unetpp.errors import UserError, said, to_install
from unetpp.offline import silenced

NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")  # optionally with the tag of its weights; never an address or a path
SHAPES = "torchvision._meta_registrations"
WRAPPED = ("state_dict", "model_state_dict", "model")  # keys under which exports keep their weights


def import_timm() -> Any:
    """Import timm, with whatever torchvision is installed.

    A build of torchvision contains operators for one build of torch. With another build, such as torch for CPUs, they
    do not load, and `import torchvision` fails when it registers their shapes. No encoder needs these operators.

    Raises:
        UserError: timm is not installed, or cannot be imported.
    """
    try:
        with silenced():
            try:
                importlib.import_module("torchvision")
            except RuntimeError as error:
                if "operator torchvision::" not in str(error):
                    raise
                for name in [one for one in sys.modules if one.partition(".")[0] == "torchvision"]:
                    del sys.modules[name]
                sys.modules[SHAPES] = ModuleType(SHAPES)  # an empty one
            return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UserError(f"encoder: {error.name} is not installed: {to_install('encoders')}") from None
    except Exception as error:
        raise UserError(f"encoder: timm cannot be imported ({said(error)}); reinstall timm and torchvision") from None


def check_name(name: str) -> None:
    """Refuse the name of a network that timm does not have.

    Raises:
        UserError: no such network; the message suggests similar names.
    """
    timm = import_timm()
    if not NAME.fullmatch(name) or not timm.is_model(name):
        import difflib

        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise UserError(
            f"encoder: found {name!r}, which is not a network of timm {timm.__version__}; did you mean "
            f"{', '.join(near) or 'resnet34, convnext_tiny or tf_efficientnet_lite0'}?"
        )


class Pyramid(nn.Module):
    """The feature maps of a timm network by level, which have the stride 2^level.

    Args:
        name: name of the network, such as "resnet34".
        in_channels: channels of the image.
        depth: the deepest level that is needed.

    Attributes:
        channels: channels of the map by level, for the levels from 0 to `depth` that the network has.

    Raises:
        UserError: timm is not installed, has no such network, or the network has no maps of several strides.
    """

    def __init__(self, name: str, in_channels: int, depth: int):
        super().__init__()
        self.name = name
        check_name(name)
        try:
            whole = import_timm().create_model(name, features_only=True, feature_cls="getter", in_chans=in_channels)
            strides, channels = whole.feature_info.reduction(), whole.feature_info.channels()
        except Exception as error:
            raise UserError(f"encoder: {name} gives no feature maps ({said(error)}); use another network") from None
        # If several maps have the same stride, the last one is used.
        places = {stride.bit_length() - 1: place for place, stride in enumerate(strides) if stride.bit_count() == 1}
        if len(places) < 2:
            raise UserError(
                f"encoder: {name} has maps of the strides {', '.join(map(str, sorted(set(strides))))}; expected "
                "several powers of two, as in resnet34, convnext_tiny or pvt_v2_b0"
            )
        self.channels = {level: channels[places[level]] for level in sorted(places) if level <= depth}
        self.places = [places[level] for level in self.channels]
        self.model = whole.model if self.places else None
        if self.model:
            self.places = self.model.prune_intermediate_layers(self.places, prune_norm=True)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # plain means, as of `unetpp.network.batch_norm`
            elif type(module).__name__ == "Conv2dSame":
                module.__class__ = _ConvSame
            elif type(module) is nn.Conv2d and 1 < module.groups == module.in_channels:
                module.__class__ = _Depthwise

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """Maps (N, channels[level], H / 2^level, W / 2^level) by level; H and W must be divisible by 2^depth."""
        if self.model is None:
            return {}
        try:
            maps: Any = self.model.forward_intermediates(
                image, indices=self.places, norm=False, output_fmt="NCHW", intermediates_only=True
            )
        except AssertionError as error:  # of a network for images of one size
            size = "x".join(map(str, image.shape[-2:]))
            raise UserError(
                f"encoder: {self.name} does not take images of {size} px ({said(error)}); expected a network for any "
                "size, such as resnet34, convnext_tiny or pvt_v2_b0"
            ) from None
        return dict(zip(self.channels, maps, strict=True))

    def count_outputs(self, in_channels: int) -> float:
        """The size of all layers' outputs, in values per image pixel: about what a training step keeps in memory."""
        found: list[int] = []
        copied = copy.deepcopy(self).to("meta")
        for module in copied.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda _module, _inputs, output: found.append(output.numel()))
        side = 4 * 2 ** max(self.channels, default=0)
        with torch.no_grad():
            copied.eval()(torch.empty(1, in_channels, side, side, device="meta"))
        return sum(found) / side**2


class _Depthwise(nn.Conv2d):
    """A convolution that a processor trains in fp32 if each channel has its own kernel, but for 3x3 without a stride.

    oneDNN computes the gradients of those 1.4 to 18 times as fast in fp32 as in bf16.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        usual = self.groups == 1 or (self.kernel_size, self.stride) == ((3, 3), (1, 1))
        if usual or not (input.is_cpu and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
            return super()._conv_forward(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return super()._conv_forward(input.float(), weight, bias).to(torch.get_autocast_dtype("cpu"))


class _ConvSame(_Depthwise):
    """timm's TensorFlow-padded convolution for sides that are divisible by its stride: the padding is constant.

    It computes the same values, but a graph of it accepts images of any size.
    """

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for kernel, stride, dilation in zip(
            self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1], strict=True
        ):
            total = max(dilation * (kernel - 1) + 1 - stride, 0)
            pads += [total // 2, total - total // 2]
        return self._conv_forward(nn.functional.pad(input, pads), self.weight, self.bias)


def synchronise(network: nn.Module) -> None:
    """Use batch norm over the batches of all processes, including timm's norms with a built-in activation."""
    import_timm().layers.convert_sync_batchnorm(network)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, or of a .pth, possibly one key deeper; nothing is unpickled.

    Raises:
        UserError: no such file, or a file without tensors by name.
    """
    wanted = "expected a .safetensors or .pth of weights by name"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {wanted}, of the network that model.encoder names")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # late: networks can be used without files

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({said(error)}); {wanted}") from None
    for key in WRAPPED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not any(isinstance(one, Tensor) for one in found.values()):
        raise UserError(f"{path}: found {type(found).__name__} without tensors; {wanted}")
    return {str(key): one for key, one in found.items() if isinstance(one, Tensor)}


def load_weights(pyramid: Pyramid, weights: Mapping[str, Tensor], source: str) -> None:
    """Load trained weights into the encoder.

    Args:
        weights: tensors by timm's names, all with the same prefix, such as "module." or "encoder."; others, such as
            the classifier, are ignored. If the first convolution has another number of channels, it is adapted in
            timm's way.
        source: how messages refer to the weights.

    Raises:
        UserError: weights of another network, or non-finite weights.
    """
    if pyramid.model is None:
        return
    wanted = pyramid.model.state_dict()
    first = next(iter(wanted))
    ends = [key.removesuffix(first) for key in weights if key == first or key.endswith(f".{first}")]
    known = {prefix: sum(prefix + key in weights for key in wanted) for prefix in ends}  # a name may end another
    found = [prefix for prefix in known if known[prefix] == max(known.values())]
    if len(found) != 1:
        names = f"{len(found)} tensors named ...{first}" if found else f"tensors such as {next(iter(weights))}"
        raise UserError(f"{source}: found {names}; expected those of the encoder as timm names them, such as {first}")
    firsts = pyramid.model.pretrained_cfg.get("first_conv") or ()
    stems = {f"{name}.weight" for name in ((firsts,) if isinstance(firsts, str) else firsts)}
    chosen = {}
    for key, value in wanted.items():
        one = weights.get(found[0] + key)
        if one is None and key.endswith(".num_batches_tracked"):
            one = value
        if one is not None and key in stems and one.ndim == 4 and one.shape[1] != value.shape[1]:
            one = import_timm().models.adapt_input_conv(value.shape[1], one)
        if one is None or one.shape != value.shape or not one.isfinite().all():
            what = "no such tensor" if one is None else f"shape {tuple(one.shape)}"
            what = "values that are not finite" if one is not None and one.shape == value.shape else what
            raise UserError(
                f"{source}: {found[0]}{key}: found {what}; expected {tuple(value.shape)}, as in the encoder: use "
                "weights of the network that model.encoder names"
            )
        chosen[key] = one
    pyramid.model.load_state_dict(chosen)


def fetch_weights(name: str, path: Path) -> None:
    """Download timm's weights of a network from its hub, and write them as a .safetensors.

    Raises:
        UserError: timm has no weights for it, or they cannot be downloaded.
    """
    from safetensors.torch import save_file

    check_name(name)
    timm = import_timm()
    try:
        with silenced():
            whole = timm.create_model(name, pretrained=True)
    except Exception as error:
        raise UserError(
            f"model.encoder_weights=hub: the weights of {name} could not be downloaded ({said(error)}); without a "
            "network connection set it to a file of weights, or to null for random weights"
        ) from None
    save_file({key: value.contiguous() for key, value in whole.state_dict().items()}, path)
