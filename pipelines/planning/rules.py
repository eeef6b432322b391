"""The table of rules that derive values of params.yaml from facts about the data and the machine.

A rule is a function of the facts and of earlier choices; it returns a value with its reason in a sentence, or None to
leave the value unchanged. The docstring of a rule names its source. benchmarks/plan.md has our own measurements.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.planning.choices import Choice
from pipelines.planning.facts import Facts, Given, Machine
from pipelines.planning.network_size import (
    PAPER_DEPTH,
    PAPER_WIDTH,
    seen_area,
    seen_px,
    suggest_depth,
    training_mib,
    widths_of,
)

MOST_PX = {"cpu": 256, "cuda": 512}  # longest side of a training image
LEAST_CROP = 128
LEAST_BATCH = 4
FEW = 60  # images, a tenth of which is too few for val
SMALL_SHARE = 0.25  # of the pixels: with less foreground a third of the crops must contain some


Rule = Callable[[Given], Choice | None]


def _channels(given: Given) -> Choice | None:
    facts = given.facts
    if facts.channels not in (1, 3):
        return Choice(facts.channels, f"files have {facts.channels} channels")
    if facts.grey:
        return Choice(1, "all images are grey, whatever the mode of their files: one channel is enough")
    return Choice(3, "images are in colour")


def _shares(given: Given) -> Choice | None:
    facts = given.facts
    if facts.num_images >= FEW:
        return None
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    return Choice(shares, f"a tenth of {facts.num_images} images is too few to select an epoch")


def _scaled(facts: Facts, most: int) -> tuple[int, int]:
    """Height and width of the median image, downsampled so that the longer side is at most `most`."""
    factor = min(1.0, most / max(facts.height, facts.width))
    return round(facts.height * factor), round(facts.width * factor)


def _size(given: Given) -> Choice | None:
    """nnU-Net trains on patches at full resolution where they hold enough context. Ours, by the score at the images'
    original size in equal time: full-resolution crops where texture decides, whole images, downsampled if large,
    where context decides."""
    facts, machine = given.facts, given.machine
    most, step = MOST_PX[machine.device], 2**PAPER_DEPTH
    if not facts.by_context and max(facts.height, facts.width) > LEAST_CROP:
        wide = f"{facts.width_px:.0f} px wide" if facts.width_px else "small"
        return Choice(None, f"objects are {wide}: crops at full resolution, nothing is downsampled")
    height, width = _scaled(facts, most)
    if not facts.one_shape:
        height = width = max(height, width)
    height, width = (max(2 * step, -(-side // step) * step) for side in (height, width))
    size = height if height == width else [height, width]
    why = "several classes" if facts.num_classes > 2 else f"objects {facts.width_px:.0f} px wide"
    reason = f"{why} in images of {facts.width:.0f} x {facts.height:.0f} px: whole images, since context matters"
    if max(facts.height, facts.width) > most:
        reason += f"; the longer side becomes {most} px to save time on a {'GPU' if machine.gpus else 'CPU'}"
    elif not facts.by_context:
        reason = f"images of {facts.width:.0f} x {facts.height:.0f} px are small: used whole, at their original size"
    return Choice(size, f"{reason}; sides are multiples of 2^{PAPER_DEPTH}")


def _fit(given: Given) -> Choice | None:
    facts, chosen = given.facts, given.chosen
    size = chosen["prepare.size"]
    if size is None:
        return None
    height, width = size if isinstance(size, list) else (size, size)
    if facts.one_size and (height, width) == (facts.height, facts.width):
        return Choice("stretch", "images already have this size")
    return Choice("pad", "keeps the aspect ratio; padding is ignored in loss and scores")


def crop_px(facts: Facts, most: int) -> int:
    """Side of a crop: four times the object size, at least `LEAST_CROP`, at most that of most images, in 32s."""
    wanted = min(max(4 * max(facts.object_px, facts.width_px), LEAST_CROP), most, max(facts.shorter_px, 32))
    return int(wanted // 32 * 32)


def _crop(given: Given) -> Choice | None:
    """Never a whole image as a crop: batches of one image would break batch norm."""
    facts, machine, chosen = given.facts, given.machine, given.chosen
    if chosen["prepare.size"] is not None:
        return Choice(None, "whole images")
    side = crop_px(facts, MOST_PX[machine.device])
    return Choice(side, f"fits objects of {max(facts.object_px, facts.width_px):.0f} px with their surroundings")


def _crops_per_image(given: Given) -> Choice | None:
    facts, chosen = given.facts, given.chosen
    if chosen["train.crop_px"] is None:
        return None
    area = facts.height * facts.width / chosen["train.crop_px"] ** 2
    number = max(1, min(16, round(area)))
    if (train := 0.7 * facts.num_images) * number < 200:
        number = min(16, max(number, round(200 / max(1.0, train))))
    return Choice(number, "an epoch covers about the area of all images, or 200 crops of a small set")


def _widths(given: Given) -> Choice | None:
    facts, machine, chosen = given.facts, given.machine, given.chosen
    depth, why = suggest_depth(facts, seen_px(chosen))
    base, called = (
        (PAPER_WIDTH, "the paper's widths") if machine.gpus else (PAPER_WIDTH // 2, "half the paper's widths")
    )
    also = "" if machine.gpus else " for a CPU, a quarter of the arithmetic"
    return Choice([widths_of(depth, base)], f"depth {depth}: {why}; {called}{also}")


def _batch(given: Given) -> Choice | None:
    """nnU-Net: as large as memory allows. Ours: 8 on processors, where more images a step are not faster;
    10 steps an epoch, but at least 4 images a batch, which batch norm needs."""
    facts, machine, chosen = given
    images = int(0.7 * facts.num_images * (chosen.get("train.crops_per_image") or 1))
    most = 32 if machine.gpus else 8
    batch = 1 << max(LEAST_BATCH, min(most, images // 10)).bit_length() - 1
    workers = chosen["train.num_workers"]
    reason = "at least ten steps per epoch" if batch < most else f"usual on a {'GPU' if machine.gpus else 'CPU'}"
    return Choice(max(1, batch // workers) * workers, reason)


def _accumulate(given: Given) -> Choice | None:
    machine, chosen = given.machine, given.chosen
    share, parts = chosen["train.batch_size"] // chosen["train.num_workers"], 1
    area, widths = seen_area(chosen), chosen["search.widths"][0]
    while 2 * parts <= share // 2 and training_mib(widths, share // parts, area) > machine.budget_mib:
        parts *= 2
    if parts == 1:
        return None
    whole = f"{training_mib(widths, share, area) / 1024:.1f} GiB (estimated)"
    return Choice(parts, f"{share} images at once would need {whole}")


def _loss(given: Given) -> Choice | None:
    """nnU-Net: cross-entropy and Dice on every set."""
    num = given.facts.num_classes
    return Choice("ce_dice", f"Dice weights all {num} classes equally" if num > 2 else "Dice handles rare foreground")


def _class_weights(given: Given) -> Choice | None:
    """nnU-Net: none. Balanced weights improve rare classes at the cost of frequent ones."""
    num = given.facts.num_classes
    if given.facts.multilabel:
        return None  # labels have no weights
    return Choice(None, "none: Dice handles rare " + ("classes" if num > 2 else "foreground"))


def _foreground_crops(given: Given) -> Choice | None:
    """nnU-Net: a third of the patches are guaranteed to contain foreground."""
    facts, chosen = given.facts, given.chosen
    if chosen["train.crop_px"] is None or not 0 < facts.foreground_share < SMALL_SHARE:
        return None
    share = f"{facts.foreground_share:.1%} of the pixels are foreground"
    return Choice(0.33, f"{share}: a third of the crops must contain some")


def _flips(given: Given) -> Choice | None:
    """Flips in every direction cost 4.9 points of IoU on photographs of pets (benchmarks/plan.md)."""
    facts = given.facts
    if facts.upright is None:
        return None
    told = f"a linear classifier distinguishes {facts.mirrored:.0%} of them from their upside-down copies"
    if facts.upright:
        return Choice("horizontal", f"images have an orientation: {told}")
    return Choice("all", f"images have no orientation: {told}, no better than chance")


def _quarter_turns(given: Given) -> Choice | None:
    facts, size = given.facts, given.chosen["prepare.size"]
    if given.chosen["train.crop_px"] is None and isinstance(size, list | tuple) and size[0] != size[1]:
        return Choice(False, "a rotated rectangle has another shape")
    if facts.upright is None:
        return None
    if facts.upright or not facts.sideways:
        return Choice(not facts.upright, "as for flips")
    told = f"a linear classifier distinguishes {facts.turned:.0%} of the images from their rotated copies"
    return Choice(False, f"rows differ from columns, as in a scan: {told}")


def _workers(given: Given) -> Choice | None:
    machine = given.machine
    return Choice(max(1, machine.gpus), "one process per GPU" if machine.gpus else "one process with all cores")


def _cpus(given: Given) -> Choice | None:
    machine = given.machine
    cores = max(1, machine.cores // max(1, machine.gpus))
    return Choice(min(cores, 8), f"of {machine.cores} cores")


def _loader_workers(given: Given) -> Choice | None:
    machine = given.machine
    if not machine.gpus:
        return Choice(0, "steps take far longer than preparing a batch")
    return Choice(max(1, min(4, machine.cores // machine.gpus - 1)), "keeps the GPU from waiting for batches")


def _gpu(given: Given) -> Choice | None:
    machine = given.machine
    return Choice(bool(machine.gpus), f"{machine.gpus or 'no'} GPU{'s' * (machine.gpus != 1)} on this machine")


def _decoders(given: Given) -> Choice | None:
    machine = given.machine
    return Choice(min(8, machine.cores), f"of {machine.cores} cores")


def _boundary(given: Given) -> Choice | None:
    """Csurka et al. 2013: 0.75 % of the diagonal; at most a quarter of the objects' width."""
    facts = given.facts
    diagonal = (facts.height**2 + facts.width**2) ** 0.5
    wanted = 0.0075 * diagonal
    if facts.width_px:
        wanted = min(wanted, facts.width_px / 4)
    return Choice(
        max(1, min(20, round(wanted))), f"0.75 % of the diagonal of {diagonal:.0f} px, or less for thin objects"
    )


RULES: dict[str, Rule] = {
    "prepare.channels": _channels,
    "prepare.shares": _shares,
    "prepare.num_workers": _decoders,
    "prepare.size": _size,
    "prepare.fit": _fit,
    "train.crop_px": _crop,
    "train.crops_per_image": _crops_per_image,
    "search.widths": _widths,
    "train.use_gpu": _gpu,
    "train.num_workers": _workers,
    "train.batch_size": _batch,
    "train.cpus_per_worker": _cpus,
    "train.loader_workers": _loader_workers,
    "train.accumulate": _accumulate,
    "train.loss": _loss,
    "train.class_weights": _class_weights,
    "train.foreground_crops": _foreground_crops,
    "augment.flips": _flips,
    "augment.quarter_turns": _quarter_turns,
    "evaluate.boundary_tolerance_px": _boundary,
}
OF_THE_MACHINE = {  # that do not depend on the data
    "prepare.num_workers",
    "train.use_gpu",
    "train.num_workers",
    "train.cpus_per_worker",
    "train.loader_workers",
    "train.accumulate",
}


def apply(facts: Facts, machine: Machine, kept: Mapping[str, Any] | None = None) -> dict[str, Choice]:
    """What the rules choose, in order; a rule sees earlier choices and the values that the user keeps."""
    chosen: dict[str, Any] = dict(kept or {})
    choices: dict[str, Choice] = {}
    for key, rule in RULES.items():
        if key in chosen:
            continue
        choice = rule(Given(facts, machine, chosen))
        if choice is not None:
            choices[key] = choice
            chosen[key] = choice.value
    return choices
