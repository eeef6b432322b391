"""What mask values mean: foreground, classes and their names, background, unlabelled pixels, object numbers.

Where values alone cannot tell, the likelier meaning is taken, and the user is told what to write for the other one.
"""

from collections.abc import Iterable
from itertools import pairwise

from pipelines.planning.choices import Plan
from pipelines.planning.class_tables import Table, known_table
from pipelines.planning.mask_facts import MaskFacts
from unetpp.errors import UserError
from unetpp.images.mask_values import NEAR

RARE = 0.005  # share of pixels with other values, from antialiasing or compression
SMOOTH = 0.2  # the same in a lossy or antialiased mask
MAX_CLASSES = 64
THIN = 2.0  # runs of a border are this much shorter than those on both sides
FEW_OBJECTS = 5  # in an image, that a trimap outlines
NUMBERS_FROM = 5  # largest object number, in some image, from which values are numbers and not classes
SCATTERED = 2.0  # unlabelled pixels have this many times more pieces than any class


def read_meaning(facts: MaskFacts, table: Table | None, mask_names: list[str], plan: Plan) -> None:
    """Choose the values of section prepare that follow from the masks.

    Args:
        facts: of a sample of the masks, one file an image.
        table: found next to the set.
        mask_names: relative names of mask files.
    """
    values = facts.values
    if not facts.num or len(values) < 2:
        plan.choose("prepare.num_classes", 1, "the sampled masks have a single value; values above 0 are foreground")
        return
    known = table or known_table(values, mask_names)
    if facts.coloured:
        _read_colours(facts, known, mask_names, plan)
    elif _is_numbered(facts):
        largest = max(facts.highest)
        plan.found.append(f"masks are instance masks that number the objects of each image, up to {largest}: one class")
        reason = f"values are object numbers (1 to {largest}, each connected), so all above 0 are foreground"
        plan.choose("prepare.num_classes", 1, reason)
        if any(0 not in pair for pair in facts.beside):
            plan.asked.append(
                "some objects touch: where each of them counts, and not the area of all, write in params.yaml  "
                "model.targets: [mask, boundary, distance]"
            )
    elif known and {value for value in values if facts.share(value) > RARE} <= set(known.names):
        _write_names(dict(known.names), known.source, facts, plan)
    elif _is_shaded(facts):
        low, high = _ends(facts)
        middle = (low + high + 1) // 2
        what = "lossy compression" if facts.lossy else "antialiased edges"
        plan.found.append(
            f"masks have values {low} and {high}, and others in between from {what}: foreground from {middle}"
        )
        plan.choose("prepare.num_classes", 1, "masks have two values, one of them foreground")
        plan.choose(
            "prepare.mask_threshold", middle, f"halfway between {low} and {high}; values in between come from {what}"
        )
        _tell_majority(facts, {value: "object" for value in values if value >= middle}, plan)
    elif len(values) == 2:
        _read_two(facts, plan)
    elif values == [0, 1, 255] and facts.images[1] + facts.images[255] <= facts.num and not facts.touch(1, 255):
        plan.found.append("foreground is 1 in some masks and 255 in others, never both in one")
        plan.choose("prepare.num_classes", 1, "values above 0 are foreground: 1 in some masks, 255 in others")
    elif (border := _find_border(facts)) is not None:
        _read_trimap(facts, border, plan)
    else:
        _read_classes(facts, plan)


def _ends(facts: MaskFacts) -> tuple[int, int]:
    """The two values that hold the most pixels, which may be next to each other where compression shifted them."""
    values = facts.values
    middle = (values[0] + values[-1]) / 2
    halves = [[value for value in values if value <= middle], [value for value in values if value > middle]]
    low, high = (max(half, key=lambda value: facts.pixels[value]) for half in halves)
    return low, high


def _is_numbered(facts: MaskFacts) -> bool:
    """Numbers of objects are dense from 1 on, each in one piece, and end elsewhere in each image."""
    if not facts.highest or facts.dense < 0.9 * len(facts.highest):
        return max(facts.highest, default=0) > MAX_CLASSES * 8 and len(facts.pixels) > NUMBERS_FROM
    return max(facts.highest) >= NUMBERS_FROM and len(set(facts.highest)) >= min(3, len(facts.highest))


def _is_shaded(facts: MaskFacts) -> bool:
    """Whether nearly all pixels are at two ends, and values in between occur only in thin lines."""
    values = facts.values
    if len(values) < 3 or values[-1] - values[0] < 16:
        return False
    low, high = _ends(facts)
    margin = (high - low) / 8 if facts.lossy else 0  # by which compression shifts the ends themselves
    between = [value for value in values if low + margin < value < high - margin]
    share = sum(facts.share(value) for value in between)
    if facts.lossy:
        return share < SMOOTH and not any(facts.share(value) > RARE and facts.run(value) >= 3 for value in between)
    beyond = any(value < low or value > high for value in values)
    thin = all(facts.run(value) < 3 for value in between)
    return len(between) > 6 and share < SMOOTH and thin and not beyond


def _read_two(facts: MaskFacts, plan: Plan) -> None:
    low, high = facts.values
    if low == 0:
        plan.found.append(f"masks have values 0 and {high}: background and foreground")
        plan.choose("prepare.num_classes", 1, f"masks have two values, 0 and {high}; {high} is foreground")
        _tell_majority(facts, {high: "object"}, plan)
        return
    inner, outer = _by_place(facts, low, high)
    names = {outer: "background", inner: "object"}
    plan.found.append(
        f"masks have values {low} and {high}: {inner}, in the centre of images, is assumed to be the object"
    )
    _ask_other(plan, {inner: "background", outer: "object"}, f"if {outer} is the object")
    plan.choose("prepare.num_classes", 1, "masks have two values, one of them foreground")
    plan.choose("prepare.values", names, f"{inner} is in the centre of images, {outer} at their edges")


def _by_place(facts: MaskFacts, one: int, other: int) -> tuple[int, int]:
    """Of two values the object's, which is in the middle and seldom at the edges, and the other."""

    def inner(value: int) -> float:
        frame = facts.framed[value] / max(1, facts.framed.total())
        return facts.central[value] / max(1, facts.pixels[value]) - frame

    return (one, other) if inner(one) >= inner(other) else (other, one)


def _find_border(facts: MaskFacts) -> int | None:
    """The border value of a trimap, between the other two and around few objects; None if there is none."""
    frequent = [value for value in facts.values if facts.share(value) > RARE]
    if len(frequent) != 3:
        return None
    border = min(frequent, key=facts.run)
    one, other = (value for value in frequent if value != border)
    between = facts.touch(border, one), facts.touch(border, other)
    if min(between) < 10 * facts.touch(one, other) or THIN * facts.run(border) > min(map(facts.run, (one, other))):
        return None
    inner, _ = _by_place(facts, one, other)
    return border if facts.pieces_each(inner) <= FEW_OBJECTS else None


def _read_trimap(facts: MaskFacts, border: int, plan: Plan) -> None:
    one, other = (value for value in facts.values if facts.share(value) > RARE and value != border)
    inner, outer = _by_place(facts, one, other)
    names = {inner: "object", outer: "background", border: "ignore"}
    listed = ", ".join(map(str, sorted(names)))
    plan.found.append(
        f"masks are trimaps with values {listed}: {border}, the border between the other two, is ignored; {inner}, in "
        f"the centre, is assumed to be the object, {outer} the background"
    )
    _ask_other(plan, names | {inner: "background", outer: "object"}, f"if {outer} is the object")
    plan.choose("prepare.num_classes", 1, "one object class and background")
    reason = f"{border} is a thin border between the other two; {inner} is in the centre, {outer} at the edges"
    plan.choose("prepare.values", dict(sorted(names.items())), reason)


def _read_classes(facts: MaskFacts, plan: Plan) -> None:
    """Class indices, or other values that each stand for a class, without a table."""
    values = [value for value in facts.values if facts.share(value) > RARE / 10 or facts.run(value) >= 3]
    if facts.lossy:
        values = _apart([value for value in values if facts.run(value) >= 3], facts)
    if len(values) < 2:
        values = facts.values[:2]
    unlabelled = _find_unlabelled(facts, values)
    classes = [value for value in values if value not in unlabelled]
    if classes[-1] < min(2 * len(classes), MAX_CLASSES):  # a sample may lack a class
        classes = list(range(classes[-1] + 1))
    names = {value: f"class {value}" for value in classes} | dict.fromkeys(unlabelled, "ignore")
    most = max(facts.pixels, key=lambda value: facts.pixels[value])
    if most in (0, 255) and most in classes:
        names[most] = "background"
    if names.get(255) == "background":
        _ask_other(plan, {**names, 255: "ignore"}, "if 255 marks unlabelled pixels, and not the background")
    for value in unlabelled:
        how = "is far from the others" if value == 255 else "is scattered around all the others"
        plan.found.append(f"value {value} {how}: taken as unlabelled pixels, excluded from loss and scores")
        _ask_other(plan, {**names, value: f"class {value}"}, f"if {value} is a class")
    _write_names(names, "the values themselves", facts, plan)
    if facts.dense >= 0.9 * max(1, len(facts.highest)):
        plan.asked.append("each value is in one piece: if values number objects, repeat with  -S prepare.num_classes=1")
    plan.asked.append(
        "classes have no names: set prepare.classes in params.yaml, or put a table such as _classes.csv next to the "
        "images"
    )


def _find_unlabelled(facts: MaskFacts, values: list) -> list:
    top, below = values[-1], values[:-1]
    if top == 255 and top - below[-1] > 2 * max((high - low for low, high in pairwise(below)), default=5):
        return [top]
    scattered, others = facts.pieces_each(top), list(map(facts.pieces_each, below))
    around = all(facts.touch(top, value) for value in below)
    return [top] if len(below) > 3 and around and scattered > SCATTERED * max(others) else []


def _apart(values: list, facts: MaskFacts, kept: Iterable = ()) -> list:
    """Of values or colours, those that are not near one of `kept` or a more frequent one."""
    kept = [*kept]
    for value in sorted(values, key=lambda one: -facts.pixels[one]):
        parts = [bytes.fromhex(one[1:]) if isinstance(one, str) else (one,) for one in (value, *kept)]
        if all(max(abs(a - b) for a, b in zip(parts[0], other, strict=True)) > NEAR for other in parts[1:]):
            kept.append(value)
    return [value for value in values if value in kept]


def _read_colours(facts: MaskFacts, table: Table | None, mask_names: list[str], plan: Plan) -> None:
    named = dict(table.names) if table and any(isinstance(key, str) for key in table.names) else {}
    frequent = [value for value in facts.values if facts.share(value) > RARE / 10 or facts.run(value) >= 3]
    if facts.lossy:  # what compression made of the others is neither frequent nor in wide runs
        frequent = _apart([value for value in frequent if facts.run(value) >= 3], facts, list(named))
    source = table.source if table and named else "their colours"
    if len(frequent) > MAX_CLASSES and not named:
        raise UserError(
            f"{mask_names[0]}: found masks of {len(frequent)} or more colours, perhaps of an object each; expected at "
            f"most {MAX_CLASSES} colours of classes, or grey masks: save object numbers as 16-bit grey PNG"
        )
    names = {
        value: "background" if value in ("#000000", 0) else f"colour {str(value).removeprefix('#')}"
        for value in frequent
    }
    if named:
        names = {**{value: "ignore" for value in frequent if value not in named}, **named}
    else:
        plan.asked.append(
            "classes are named by their colours: to name them, put a table such as labelmap.txt next to the images"
        )
    _write_names(names, source, facts, plan)


def _write_names(names: dict, source: str, facts: MaskFacts, plan: Plan) -> None:
    """Choose prepare's values, classes, num_classes and background from a name for each value."""
    if not any(isinstance(value, str) for value in names):  # colours stay in the order of their table
        names = dict(sorted(names.items()))
    classes = list(dict.fromkeys(name for name in names.values() if name not in ("background", "ignore")))
    background = "background" in names.values()
    unlabelled = [value for value, name in names.items() if name == "ignore"]
    if background and len(classes) == 1:
        plan.found.append(f"masks have {classes[0]} and background, by {source}")
        plan.choose("prepare.num_classes", 1, "one class and background")
        plan.choose("prepare.values", names, f"names by {source}")
        _tell_majority(facts, {value: name for value, name in names.items() if name == classes[0]}, plan)
        return
    listed = ", ".join(classes[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else "")
    also = "background" if background else "no background"
    plan.found.append(f"masks have {len(classes)} classes and {also}, by {source}: {listed}")
    if unlabelled and source != "the values themselves":
        shown = ", ".join(map(str, unlabelled[:4])) + (" ..." if len(unlabelled) > 4 else "")
        plan.found.append(
            f"unlabelled pixels ({shown}), {sum(map(facts.share, unlabelled)):.1%}, are left out of loss and scores"
        )
    plan.choose("prepare.num_classes", len(classes) + background, f"{len(classes)} classes and {also}")
    plan.choose("prepare.classes", classes, f"names by {source}, in the order of their indices")
    if background:
        plan.choose("prepare.background", True, "one value is the background")
    else:
        plan.choose("prepare.background", False, "every value is a class; there is no background")
    known = [*["background"] * background, *classes]
    plain = {**dict(enumerate(known)), **dict.fromkeys(unlabelled, "ignore")}
    if plain != names or len(unlabelled) > 1:
        plan.choose("prepare.values", names, f"meaning of each stored value, by {source}")
    elif unlabelled:
        plan.choose("prepare.ignore", unlabelled[0], "unlabelled pixels, excluded from loss and scores")


def _tell_majority(facts: MaskFacts, foreground: dict, plan: Plan) -> None:
    share = sum(facts.share(value) for value in foreground)
    if share > 0.5:
        plan.found.append(
            f"foreground is {share:.0%} of the pixels: used as stored, not inverted (typical of membranes and tissue)"
        )
        names = {value: "background" if value in foreground else "object" for value in facts.values[:2]}
        if len(facts.values) == 2:
            _ask_other(plan, names, "if the lower value is the object")


def _ask_other(plan: Plan, names: dict, when: str) -> None:
    listed = ", ".join(f"{value}: {name}" for value, name in names.items())
    plan.asked.append(f"{when}, set in params.yaml  prepare.values: {{{listed}}}")
