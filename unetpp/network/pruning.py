"""Shallower networks out of a trained one, and trained ones out of classic checkpoints: filters on state-dict keys."""

import re

from torch import Tensor

from unetpp.errors import UserError
from unetpp.network.model import NestedUNet


def prune(model: NestedUNet, depth: int, keep_heads: bool = False) -> NestedUNet:
    """The embedded network of a depth: the nodes with i + j <= depth and that depth's head.

    In eval mode its logits equal `model`'s own of that depth, bit for bit. The weights are copied.

    Args:
        keep_heads: keep the heads of the shallower depths too, to average them (`Trained.ensemble`).

    Raises:
        UserError: the network has no head at that depth.
    """
    if depth not in model.depths:
        why = {
            (
                True,
                False,
            ): "a plain U-Net holds no shallower network: its decoder is one path, from the deepest level up",
            (False, False): "it was built without deep supervision, so its shallow depths have no head",
        }.get((model.skips == "plain", model.deep_supervision), "")
        found = ", ".join(str(d) for d in model.depths)
        raise UserError(
            f"cannot prune to depth {depth}: the network has heads at {found}" + (f"; {why}" if why else "")
        )
    config = model.config() | {
        "widths": list(model.widths[: depth + 1]),
        "deep_supervision": keep_heads,
        # Below its deepest diagonal an encoder-skip network is a chain, whose nodes off the last diagonal
        # reach no head any more: what remains of UNet^e at one depth is the plain U-Net.
        "skips": "plain" if model.skips == "encoder" and not keep_heads else model.skips,
    }
    if model.pyramid and min(model.pyramid.channels, default=depth + 1) > depth:
        del config["encoder"]  # none of its maps is left
    pruned = NestedUNet(**config)
    weights = model.state_dict()
    pruned.load_state_dict({key: weights[key] for key in pruned.state_dict()})
    pruned.to(next(model.parameters()).device)
    return pruned.train(model.training)


def transfer(source: NestedUNet, target: NestedUNet) -> list[int]:
    """Put the weights of a trained network into another one of the same build, or a shallower one, to fine-tune it.

    Heads that the source has not, or has for other classes, stay as they were drawn.

    Returns:
        the depths of these heads.

    Raises:
        UserError: another build: widths, channels, encoder, skips, norm or upsampling.
    """
    weights, wanted = source.state_dict(), target.state_dict()
    anew = {key for key in wanted if key not in weights or weights[key].shape != wanted[key].shape}
    theirs, ours = (one.config() | {"encoder": one.encoder} for one in (source, target))
    for key in ("in_channels", "encoder", "skips", "norm", "upsampling", "widths"):
        same = theirs[key] == ours[key]
        if key == "widths":  # the first levels of a nested network are one
            same = theirs[key][: len(ours[key])] == ours[key] and all(one.startswith("heads.") for one in anew)
        if not same:
            folded = "; batch norm was folded away for export: take the model as it was trained"
            raise UserError(
                f"{key}: found {theirs[key]} of the trained network and {ours[key]} of the one that is to begin with "
                f"its weights; expected the same: build it with {key}={theirs[key]}"
                + (folded if theirs[key] == "none" else "")
            )
    target.load_state_dict(wanted | {key: weights[key] for key in wanted if key not in anew})
    return sorted({int(key.split(".")[1]) for key in anew})


_CLASSIC = re.compile(
    r"conv(?P<i>\d)_(?P<j>\d)\.(?P<kind>conv|bn)(?P<n>[12])\.(?P<leaf>\w+)|final(?P<d>\d?)\.(?P<head>\w+)"
)


def from_classic(weights: dict[str, Tensor]) -> NestedUNet:
    """A network from a state dict with the classic names (`conv0_0.conv1.weight` ... `final4.bias`).

    Those are the names of the widely copied public PyTorch code of UNet++ and, with the nodes of the last
    diagonal alone, of its U-Net. Widths, channels and heads are read from the shapes.

    Raises:
        UserError: a key that is none of these names, or one that is missing.
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
        raise UserError(f"not a whole classic UNet++ checkpoint: {error}") from None
    return model.eval()
