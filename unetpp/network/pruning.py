"""Shallower networks from a trained one, and networks from classic checkpoints: filters on state-dict keys."""

import re

from torch import Tensor

from unetpp.errors import UserError
from unetpp.network.model import NestedUNet


def prune(model: NestedUNet, depth: int, keep_heads: bool = False) -> NestedUNet:
    """The embedded network of a depth: the nodes with i + j <= depth, and the head of that depth.

    In eval mode its logits equal those of `model` at that depth, bit for bit. The weights are copied.

    Args:
        model: the network to prune; it is not changed.
        depth: the new depth, at which the network must have a head.
        keep_heads: keep the heads of the shallower depths too, to average them (`Trained.ensemble`).

    Returns:
        a new network of this depth.

    Raises:
        UserError: the network has no head at that depth.
    """
    if depth not in model.depths:
        why = {
            (
                True,
                False,
            ): "a plain U-Net contains no shallower network: its decoder is one path, from the deepest level up",
            (False, False): "it was built without deep supervision, so its shallow depths have no head",
        }.get((model.skips == "plain", model.deep_supervision), "")
        found = ", ".join(str(d) for d in model.depths)
        raise UserError(
            f"cannot prune to depth {depth}: the network has heads at {found}" + (f"; {why}" if why else "")
        )
    config = model.config() | {
        "widths": list(model.widths[: depth + 1]),
        "deep_supervision": keep_heads,
        # After pruning UNet^e, nodes off the last diagonal no longer reach a head: what remains is the plain U-Net.
        "skips": "plain" if model.skips == "encoder" and not keep_heads else model.skips,
    }
    if model.pyramid and min(model.pyramid.channels, default=depth + 1) > depth:
        del config["encoder"]  # the pruned network uses none of its maps
    pruned = NestedUNet(**config)
    weights = model.state_dict()
    pruned.load_state_dict({key: weights[key] for key in pruned.state_dict()})
    pruned.to(next(model.parameters()).device)
    return pruned.train(model.training)


def transfer(source: NestedUNet, target: NestedUNet) -> list[int]:
    """Copy the weights of a trained network into one of the same architecture, or a shallower one, to fine-tune it.

    Heads that the source does not have, or has for other classes, keep their random weights.

    Args:
        source: the trained network.
        target: the new network; it is changed in place.

    Returns:
        the depths of the heads that keep their random weights.

    Raises:
        UserError: another architecture: widths, channels, encoder, skips, norm or upsampling.
    """
    weights, wanted = source.state_dict(), target.state_dict()
    anew = {key for key in wanted if key not in weights or weights[key].shape != wanted[key].shape}
    theirs, ours = (one.config() | {"encoder": one.encoder} for one in (source, target))
    for key in ("in_channels", "encoder", "skips", "norm", "upsampling", "widths"):
        same = theirs[key] == ours[key]
        if key == "widths":  # the first levels of a nested network are a network
            same = theirs[key][: len(ours[key])] == ours[key] and all(one.startswith("heads.") for one in anew)
        if not same:
            folded = "; batch norm was folded away for export: use the model of the training run"
            raise UserError(
                f"{key}: found {theirs[key]} in the trained network and {ours[key]} in the network that receives its "
                f"weights; expected the same: build the new network with {key}={theirs[key]}"
                + (folded if theirs[key] == "none" else "")
            )
    target.load_state_dict(wanted | {key: weights[key] for key in wanted if key not in anew})
    return sorted({int(key.split(".")[1]) for key in anew})


_CLASSIC = re.compile(
    r"conv(?P<i>\d)_(?P<j>\d)\.(?P<kind>conv|bn)(?P<n>[12])\.(?P<leaf>\w+)|final(?P<d>\d?)\.(?P<head>\w+)"
)


def from_classic(weights: dict[str, Tensor]) -> NestedUNet:
    """A network from a state dict with the classic names (`conv0_0.conv1.weight` ... `final4.bias`).

    The widely copied public PyTorch code of UNet++ uses these names and, with only the nodes of the last diagonal, so
    does its U-Net. Widths, channels and heads are derived from the shapes.

    Args:
        weights: tensors by name.

    Raises:
        UserError: an unknown or missing key.
    """
    names = {key: _CLASSIC.fullmatch(key.removeprefix("module.")) for key in weights}
    strange = [key for key, match in names.items() if match is None]
    nodes = {(int(m["i"]), int(m["j"])) for m in names.values() if m and m["i"]}
    if strange or not nodes:
        raise UserError(
            f"not a classic UNet++ checkpoint: found key {strange[0] if strange else '(no node)'!r}; "
            "expected names such as conv0_0.conv1.weight and final4.bias"
        )
    depth = max(i for i, _ in nodes)

    def new_name(m: re.Match) -> str:
        if m["head"]:
            return f"heads.{m['d'] or depth}.{m['head']}"
        return f"nodes.{m['i']}_{m['j']}.{m['kind'].replace('bn', 'norm')}{m['n']}.{m['leaf']}"

    renamed = {new_name(match): weights[key] for key, match in names.items() if match}
    try:
        model = NestedUNet(
            widths=[renamed[f"nodes.{i}_0.conv1.weight"].shape[0] for i in range(depth + 1)],
            in_channels=renamed["nodes.0_0.conv1.weight"].shape[1],
            num_classes=renamed[f"heads.{depth}.weight"].shape[0],
            skips="dense" if (0, 1) in nodes or depth == 1 else "plain",
            deep_supervision=any(match["d"] for match in names.values() if match),
        )
        model.load_state_dict(renamed)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"not a complete classic UNet++ checkpoint: {error}") from None
    return model.eval()
