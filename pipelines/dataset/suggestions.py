"""What the fingerprint advises: depth by the sizes of objects, size or crop, widths, batch by memory.

Rules of thumb with their reason, no measurements: `search` compares the candidates, `evaluate` measures each depth.
A function of the data and of how they are prepared, so that the same data give the same advice on any machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipelines.dataset.object_sizes import share_smaller
from unetpp.images.frame import as_size, say_size
from unetpp.network.model import MAX_DEPTH, NestedUNet
from unetpp.network.profiling import estimate_training_mib

SMALL_SHARE = 0.1  # at most so many objects may be smaller than a pixel of the deepest level
LEAST_CELLS = 4  # a side of the deepest level has at least so many pixels, as in nnU-Net (Isensee et al. 2021)
PAPER_WIDTH = 32  # of level 0 in the UNet++ paper; each level doubles it
LARGE_PX = 512  # images of a longer side are trained on by crops
UNLIKE = 1.5  # sides or shapes that differ by more are not resized to one square
RARE = 0.05  # share of the pixels
MEMORY_GIB = (8, 16, 24, 80)
MAX_BATCH = 32
TOP = 1024  # no larger batch is looked for
LEAST_STEPS = 10  # optimizer steps of an epoch


@dataclass(frozen=True)
class Suggestion:
    """Changes of params.yaml, as `dvc exp run -S` takes them, and the reason in a sentence."""

    what: str
    changes: tuple[str, ...]
    reason: str

    @property
    def command(self) -> str:
        quoted = [f"'{change}'" if "[" in change else change for change in self.changes]
        return "dvc exp run " + " ".join(f"-S {change}" for change in quoted)


def suggest_depth(sizes: Mapping[int, int], side_px: float) -> int:
    """The deepest network of whose coarsest pixels, 2^d px wide, at most a tenth of the objects are smaller.

    At least 1, and no deeper than leaves `LEAST_CELLS` of these pixels on a side.

    Args:
        sizes: of the objects as the network sees them, by bin (see pipelines/dataset/object_sizes.py).
        side_px: of the images or crops that it sees.
    """
    depth = 1
    while (
        depth < MAX_DEPTH
        and share_smaller(sizes, depth + 1) <= SMALL_SHARE
        and LEAST_CELLS * 2 ** (depth + 1) <= side_px
    ):
        depth += 1
    return depth


def widths_of(depth: int) -> list[int]:
    """The paper's widths, cut or continued to this depth."""
    return [PAPER_WIDTH * 2**level for level in range(depth + 1)]


def largest_batch(widths: list[int], side_px: int, memory_gib: float) -> int:
    """The largest power of two of which a training step fits into the memory; 0 where not even one image does."""
    with torch.device("meta"):  # no weights are made
        network = NestedUNet(widths)
    batch = 0
    while batch < TOP and estimate_training_mib(network, max(1, 2 * batch), side_px) <= memory_gib * 1024:
        batch = max(1, 2 * batch)
    return batch


def crop_px(images: dict, stored: dict) -> int:
    """Side of a crop: eight of the larger objects wide, 128 to 512 px, no larger than most images; whole 32s."""
    wanted = min(max(8 * stored["p90"], 128), LARGE_PX, max(images["shorter_px"]["q25"], 32))
    return int(wanted // 32 * 32)


def seen_px(fingerprint: dict) -> int:
    """The shorter side of what the network is trained on: prepare.size, or the crop that is suggested."""
    size = as_size(fingerprint["prepared"]["size"])
    return min(size) if size else crop_px(fingerprint["images"], fingerprint["objects"]["stored"])


def advise(fingerprint: dict) -> dict:
    """The advice to a fingerprint (`fingerprint.summarise`): depth as prepared and of the files, and suggestions.

    The depths are None where there are no objects.
    """
    objects, side_px = fingerprint["objects"], seen_px(fingerprint)
    sizes, stored = (
        {int(bin): count for bin, count in objects[name]["sizes"].items()} for name in ("prepared", "stored")
    )
    depth = own_depth = None
    suggestions = [*_size(fingerprint), *_channels(fingerprint), *_balance(fingerprint)]
    if sizes:
        depth = suggest_depth(sizes, side_px)
        own_depth = suggest_depth(stored, crop_px(fingerprint["images"], objects["stored"]))
        suggestions += [_widths(depth, sizes, fingerprint), *_batch(depth, side_px, fingerprint)]
    return {
        "side_px": side_px,
        "depth": depth,
        "own_depth": own_depth,
        "suggestions": [{"what": one.what, "command": one.command, "reason": one.reason} for one in suggestions],
    }


def _size(fingerprint: dict) -> list[Suggestion]:
    images, objects, size = fingerprint["images"], fingerprint["objects"], fingerprint["prepared"]["size"]
    sides, large = images["side_px"], objects["stored"]["p90"]
    unlike = sides["max"] > UNLIKE * sides["min"] or images["aspect"]["max"] > UNLIKE
    many = f"sides from {sides['min']:.0f} to {sides['max']:.0f} px" if unlike else f"sides of {sides['median']:.0f} px"
    crop, own = crop_px(images, objects["stored"]), max(32, round(sides["median"] / 32) * 32)
    if 4 * large > LARGE_PX and sides["max"] > LARGE_PX:
        reason = f"Objects of {large:.0f} px are too large for crops: images whole, as large as still trains well."
        return [] if size == LARGE_PX else [Suggestion("Size", (f"prepare.size={LARGE_PX}",), reason)]
    in_crop = f"a crop of {crop} px holds objects of {large:.0f} px with their surroundings"
    if size is None:
        return [Suggestion("Crop", (f"train.crop_px={crop}",), f"The images keep their own size, and {in_crop}.")]
    if unlike or sides["max"] > LARGE_PX:
        why = f"{say_size(size)} px shows their objects {1 / objects['shrunk']:.1f} times smaller"
        if unlike:
            why = f"resizing all to {say_size(size)} px makes an object's size depend on the shape of its image"
        changes = ("prepare.size=null", f"train.crop_px={crop}")
        return [Suggestion("Size", changes, f"Images have {many}, and {why}; {in_crop}.")]
    if own == size:
        return []
    change = f"{objects['shrunk']:.2f} times their width"
    return [Suggestion("Size", (f"prepare.size={own}",), f"Images have {many}; at {size} px objects have {change}.")]


def _channels(fingerprint: dict) -> list[Suggestion]:
    num, grey = fingerprint["splits"]["all"]["num_images"], fingerprint["images"]["grey"]
    if grey == num and fingerprint["prepared"]["channels"] == 3:
        reason = f"All {num} images are grey, whatever the mode of their files: one channel says the same."
        return [Suggestion("Channels", ("prepare.channels=1",), reason)]
    return []


def _balance(fingerprint: dict) -> list[Suggestion]:
    """Weights where a class is rare, and crops that find foreground where they would mostly miss it."""
    found = []
    present = [row for row in fingerprint["classes"] if row["pixels"]]
    rarest = min(present, key=lambda row: row["share"])
    if len(present) > 1 and rarest["share"] < RARE and not fingerprint["prepared"]["multilabel"]:
        reason = (
            f"Class {rarest['name']} has {rarest['share']:.2%} of the pixels; balanced, each class counts the same."
        )
        found.append(Suggestion("Class weights", ("train.class_weights=balanced",), reason))
    share = fingerprint["splits"]["all"]["foreground_share"]
    if fingerprint["prepared"]["size"] is None and 0 < share < RARE:
        reason = f"{share:.2%} of the pixels are foreground: a third of the crops are made to contain some."
        crop = crop_px(fingerprint["images"], fingerprint["objects"]["stored"])
        changes = (f"train.crop_px={crop}", "train.foreground_crops=0.33")
        found.append(Suggestion("Crops with foreground", changes, reason))
    return found


def _widths(depth: int, sizes: Mapping[int, int], fingerprint: dict) -> Suggestion:
    depths, side_px = [depth], seen_px(fingerprint)
    if depth < MAX_DEPTH and LEAST_CELLS * 2 ** (depth + 1) <= side_px:
        depths.append(depth + 1)
    candidates = ",".join(str(widths_of(one)).replace(" ", "") for one in depths)
    reason = f"{share_smaller(sizes, depth):.0%} of the objects are smaller than 2^{depth} = {2**depth} px."
    if len(depths) > 1:
        small = f"{share_smaller(sizes, depth + 1):.0%} are smaller than its {2 ** (depth + 1)} px"
        reason += f" One deeper is a candidate too, for its view of the surroundings ({small}); short trials choose."
    reason += " The widths are the paper's; half of them need about a quarter of the arithmetic."
    changes, step = [f"search.widths=[{candidates}]"], 2 ** depths[-1]
    if side_px % step:
        key = "prepare.size" if fingerprint["prepared"]["size"] else "train.crop_px"
        changes.append(f"{key}={-(-side_px // step) * step}")
        reason += f" They need sides divisible by {step}."
    return Suggestion("Depth and widths", tuple(changes), reason)


def _batch(depth: int, side_px: int, fingerprint: dict) -> list[Suggestion]:
    widths = widths_of(depth)
    fits = {memory: largest_batch(widths, side_px, memory) for memory in MEMORY_GIB}
    num_train = fingerprint["splits"]["train"]["num_images"]
    most = max(1, min(MAX_BATCH, num_train // LEAST_STEPS))
    batch = min(fits[MEMORY_GIB[0]], 2 ** (most.bit_length() - 1))
    if not batch:
        return []
    told = [memory for memory in MEMORY_GIB if fits[memory] < TOP] or [MEMORY_GIB[0]]
    held = ", ".join(f"{fits[memory]}{' or more' * (fits[memory] == TOP)} in {memory} GiB" for memory in told)
    limit = f"what fits into {MEMORY_GIB[0]} GiB"
    if batch < fits[MEMORY_GIB[0]]:
        limit = f"at most {MAX_BATCH}, and at least {LEAST_STEPS} steps an epoch of {num_train} images"
    reason = (
        f"{batch} images: {limit}. Of {side_px} x {side_px} px at depth {depth} with the paper's widths, a training "
        f"step in fp32 takes {held} (a model, see below); bf16 needs about three fifths."
    )
    return [Suggestion("Batch", (f"train.batch_size={batch}",), reason)]
