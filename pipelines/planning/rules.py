"""The one table of rules by which values of params.yaml follow from what the data and the machine are.

A rule is a function of the facts and of what was chosen before it; it returns a value with its reason in a sentence,
or None to leave the value as it is. Where a rule comes from stands in its docstring. benchmarks/plan.md has our own
measurements.
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

MOST_PX = {"cpu": 256, "cuda": 512}  # of the longer side of what a network is trained on
LEAST_CROP = 128
LEAST_BATCH = 4
FEW = 60  # images, of which a tenth for val would be a handful
SMALL_SHARE = 0.25  # of the pixels: less foreground is looked for by a third of the crops


Rule = Callable[[Given], Choice | None]


def _channels(given: Given) -> Choice | None:
    facts = given.facts
    if facts.channels not in (1, 3):
        return Choice(facts.channels, f"files have {facts.channels} channels")
    if facts.grey:
        return Choice(1, "images are grey, whatever the mode of their files: one channel says the same")
    return Choice(3, "images are in colour")


def _shares(given: Given) -> Choice | None:
    facts = given.facts
    if facts.num_images >= FEW:
        return None
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    return Choice(shares, f"of {facts.num_images} images a tenth would be too few to choose an epoch by")


def _scaled(facts: Facts, most: int) -> tuple[int, int]:
    """Height and width of the median image, made smaller so that the longer side is at most `most`."""
    factor = min(1.0, most / max(facts.height, facts.width))
    return round(facts.height * factor), round(facts.width * factor)


def _size(given: Given) -> Choice | None:
    """nnU-Net trains on patches at full resolution where they hold enough context. Ours, by the score at the images'
    own size in equal time: native crops for what is told by its texture, whole images, made smaller by their longer
    side where they are large, for what is told by its context."""
    facts, machine = given.facts, given.machine
    most, step = MOST_PX[machine.device], 2**PAPER_DEPTH
    if not facts.by_context and max(facts.height, facts.width) > LEAST_CROP:
        wide = f"{facts.width_px:.0f} px" if facts.width_px else "little"
        return Choice(None, f"what is looked for is {wide} wide: native crops, nothing is made smaller")
    height, width = _scaled(facts, most)
    if not facts.one_shape:
        height = width = max(height, width)
    height, width = (max(2 * step, -(-side // step) * step) for side in (height, width))
    size = height if height == width else [height, width]
    why = "several classes" if facts.num_classes > 2 else f"what is {facts.width_px:.0f} px wide"
    reason = f"{why} of images of {facts.width:.0f} x {facts.height:.0f} px: whole images, as context tells"
    if max(facts.height, facts.width) > most:
        reason += f"; the longer side becomes {most} px, for time on a {'GPU' if machine.gpus else 'processor'}"
    elif not facts.by_context:
        reason = f"images of {facts.width:.0f} x {facts.height:.0f} px are small: whole, at their own size"
    return Choice(size, f"{reason}; sides are multiples of 2^{PAPER_DEPTH}")


def _fit(given: Given) -> Choice | None:
    facts, chosen = given.facts, given.chosen
    size = chosen["prepare.size"]
    if size is None:
        return None
    height, width = size if isinstance(size, list) else (size, size)
    if facts.one_size and (height, width) == (facts.height, facts.width):
        return Choice("stretch", "images have that size already")
    return Choice("pad", "proportions are kept, and the rest is padding, which counts nowhere")


def crop_px(facts: Facts, most: int) -> int:
    """Side of a crop: four times what is looked for, `LEAST_CROP` px or more, no larger than most images; whole 32s."""
    wanted = min(max(4 * max(facts.object_px, facts.width_px), LEAST_CROP), most, max(facts.shorter_px, 32))
    return int(wanted // 32 * 32)


def _crop(given: Given) -> Choice | None:
    """Never a whole image as a crop: an epoch would be a step of one image, of which batch norm learns nothing."""
    facts, machine, chosen = given.facts, given.machine, given.chosen
    if chosen["prepare.size"] is not None:
        return Choice(None, "whole images")
    side = crop_px(facts, MOST_PX[machine.device])
    return Choice(side, f"holds objects of {max(facts.object_px, facts.width_px):.0f} px with their surroundings")


def _crops_per_image(given: Given) -> Choice | None:
    facts, chosen = given.facts, given.chosen
    if chosen["train.crop_px"] is None:
        return None
    area = facts.height * facts.width / chosen["train.crop_px"] ** 2
    number = max(1, min(16, round(area)))
    if (train := 0.7 * facts.num_images) * number < 200:
        number = min(16, max(number, round(200 / max(1.0, train))))
    return Choice(number, "an epoch sees about the area of all images, or 200 crops of a small set")


def _widths(given: Given) -> Choice | None:
    facts, machine, chosen = given.facts, given.machine, given.chosen
    depth, why = suggest_depth(facts, seen_px(chosen))
    base, called = (
        (PAPER_WIDTH, "the paper's widths") if machine.gpus else (PAPER_WIDTH // 2, "half the paper's widths")
    )
    also = "" if machine.gpus else ", a quarter of the arithmetic, for a processor"
    return Choice([widths_of(depth, base)], f"depth {depth}: {why}; {called}{also}")


def _batch(given: Given) -> Choice | None:
    """nnU-Net: as large as memory allows. Ours: 8 on processors, where more images a step are not faster;
    10 steps an epoch, but no batch of fewer than 4 images, of which batch norm learns little."""
    facts, machine, chosen = given
    images = int(0.7 * facts.num_images * (chosen.get("train.crops_per_image") or 1))
    most = 32 if machine.gpus else 8
    batch = 1 << max(LEAST_BATCH, min(most, images // 10)).bit_length() - 1
    workers = chosen["train.num_workers"]
    reason = (
        "at least ten steps an epoch" if batch < most else f"as usual on a {'GPU' if machine.gpus else 'processor'}"
    )
    return Choice(max(1, batch // workers) * workers, reason)


def _accumulate(given: Given) -> Choice | None:
    machine, chosen = given.machine, given.chosen
    share, parts = chosen["train.batch_size"] // chosen["train.num_workers"], 1
    area, widths = seen_area(chosen), chosen["search.widths"][0]
    while 2 * parts <= share // 2 and training_mib(widths, share // parts, area) > machine.budget_mib:
        parts *= 2
    if parts == 1:
        return None
    whole = f"{training_mib(widths, share, area) / 1024:.1f} GiB (a model)"
    return Choice(parts, f"{share} images at once would take {whole}")


def _loss(given: Given) -> Choice | None:
    """nnU-Net: cross-entropy and Dice on every set."""
    num = given.facts.num_classes
    return Choice(
        "ce_dice", f"Dice weighs each of {num} classes alike" if num > 2 else "Dice finds rare foreground too"
    )


def _class_weights(given: Given) -> Choice | None:
    """nnU-Net: none. Balanced weights buy rare classes with the pixels of frequent ones."""
    num = given.facts.num_classes
    if given.facts.multilabel:
        return None  # of labels, which have no weights
    return Choice(None, "none: Dice sees to rare " + ("classes" if num > 2 else "foreground"))


def _foreground_crops(given: Given) -> Choice | None:
    """nnU-Net: a third of the patches hold foreground for sure."""
    facts, chosen = given.facts, given.chosen
    if chosen["train.crop_px"] is None or not 0 < facts.foreground_share < SMALL_SHARE:
        return None
    share = f"{facts.foreground_share:.1%} of the pixels are foreground"
    return Choice(0.33, f"{share}: a third of the crops are made to hold some")


def _flips(given: Given) -> Choice | None:
    """Forced turns cost 4.9 points of IoU on photographs of pets (benchmarks/plan.md)."""
    facts = given.facts
    if facts.upright is None:
        return None
    told = f"{facts.mirrored:.0%} of the images are told from their upside-down copies by a linear classifier"
    if facts.upright:
        return Choice("horizontal", f"images have an up and a down: {told}")
    return Choice("all", f"images have no up and down: {told}, as by chance")


def _quarter_turns(given: Given) -> Choice | None:
    facts, size = given.facts, given.chosen["prepare.size"]
    if given.chosen["train.crop_px"] is None and isinstance(size, list | tuple) and size[0] != size[1]:
        return Choice(False, "a turned rectangle has another shape")
    if facts.upright is None:
        return None
    if facts.upright or not facts.sideways:
        return Choice(not facts.upright, "as for flips")
    told = f"{facts.turned:.0%} of the images are told from their turned copies"
    return Choice(False, f"rows differ from columns, as in a scan: {told}")


def _workers(given: Given) -> Choice | None:
    machine = given.machine
    return Choice(max(1, machine.gpus), "a process for each GPU" if machine.gpus else "one process with all cores")


def _cpus(given: Given) -> Choice | None:
    machine = given.machine
    cores = max(1, machine.cores // max(1, machine.gpus))
    return Choice(min(cores, 8), f"of {machine.cores} cores")


def _loader_workers(given: Given) -> Choice | None:
    machine = given.machine
    if not machine.gpus:
        return Choice(0, "batches are made in line with steps that take far longer")
    return Choice(max(1, min(4, machine.cores // machine.gpus - 1)), "a GPU waits for batches that are made in line")


def _gpu(given: Given) -> Choice | None:
    machine = given.machine
    return Choice(bool(machine.gpus), f"{machine.gpus or 'no'} GPU{'s' * (machine.gpus != 1)} on this machine")


def _decoders(given: Given) -> Choice | None:
    machine = given.machine
    return Choice(min(8, machine.cores), f"of {machine.cores} cores")


def _boundary(given: Given) -> Choice | None:
    """Csurka et al. 2013: 0.75 % of the diagonal; no more than a quarter of what is looked for is wide."""
    facts = given.facts
    diagonal = (facts.height**2 + facts.width**2) ** 0.5
    wanted = 0.0075 * diagonal
    if facts.width_px:
        wanted = min(wanted, facts.width_px / 4)
    return Choice(
        max(1, min(20, round(wanted))), f"0.75 % of the diagonal of {diagonal:.0f} px, or less for thin things"
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
OF_THE_MACHINE = {  # of which the data say nothing
    "prepare.num_workers",
    "train.use_gpu",
    "train.num_workers",
    "train.cpus_per_worker",
    "train.loader_workers",
    "train.accumulate",
}


def apply(facts: Facts, machine: Machine, kept: Mapping[str, Any] | None = None) -> dict[str, Choice]:
    """What the rules choose, in their order; a rule sees what others chose before it, and what the user keeps."""
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
