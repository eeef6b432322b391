"""The templates that the names of a dataset follow: the pictures that pair up as images and masks."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from pipelines.storage.naming.folder_words import IMAGE_WORDS, MASK_WORDS, Side, find_sides
from pipelines.storage.naming.templates import (
    SEPARATORS,
    Layout,
    is_picture,
    match,
    split_by_names,
)

# If a dataset has several sorts of masks: preferred are classes; secondary are renderings of them, or object numbers.
PREFERRED = ({"labeltrainids"}, {"semantic", "segmentationclass", "gtfine", "labelids", "1stmanual"})
SECONDARY = ("color", "colors", "colour", "colours", "colored", "instanceids", "vis", "visualization", "overlay")
SECONDARY += ("overlays", "preview", "thumb", "thumbnail", "instancetrainids", "instance", "instances", "panoptic")
MAX_TAILS = 12


class Candidate(NamedTuple):
    layout: Layout
    num_pairs: int
    sure: int  # 0 = equal names; higher, the more has to be cut off


def recognise(names: Iterable[PurePosixPath]) -> list[Candidate]:
    """The layouts that names may have: one if they are unambiguous, none if nothing pairs up.

    Where every folder of several has images and masks of its own, they are one set.
    """
    names = list(names)
    found = _recognise(names, False)
    if len(found) != 1:
        together = _recognise(names, True)
        if len(together) == 1 and "{folder}" in together[0].layout.images:
            found = together
    if len(found) == 1:
        found = [found[0]._replace(layout=split_by_names(found[0].layout, names))]
    return found


def _recognise(names: Iterable[PurePosixPath], by_folder: bool) -> list[Candidate]:
    sides = find_sides(names, by_folder)
    found: list[Candidate] = []
    masks = [pattern for pattern, side in sides.items() if side.role == "mask"]
    for pattern, side in [*sides.items(), *(_unnamed(sides[""]) if masks and "" in sides else ())]:
        if side.role != "mask":
            for other in masks:
                found += _pair(pattern, side, other, sides[other])
            found += _pair_within(pattern, side)
    return _best(found)


def find_coco(names: Iterable[PurePosixPath]) -> str:
    """The template of the images of COCO annotations, by their folders only."""
    names = [name for name in names if is_picture(name)]
    inside = [name for name in names if len(name.parts) > 1 and name.parts[0] == "images"]
    patterns = list(find_sides(inside or names))
    if len(patterns) == 1 and "{split}" in patterns[0]:
        return _template(patterns[0])
    return "images/{id}" if inside else "{id}"


def _unnamed(side: Side) -> Iterator[tuple[str, Side]]:
    """The pictures of folders without meaning, next to masks, by each folder that contains all of them."""
    parts = [PurePosixPath(rest).parts for *_, rest in side.names]
    for end in range(1, min(map(len, parts))):
        if len({one[:end] for one in parts}) > 1:
            return
        yield "/".join(parts[0][:end]), Side(None, [(None, "", "/".join(one[end:])) for one in parts])


def _affixes(side: Side) -> list[tuple[str, str]]:
    """Heads and tails that many names of a side share, such as `mask_` or `_gtFine_labelIds`."""
    rests = [rest for *_, rest in side.names]
    groups: dict[str, list[str]] = defaultdict(list)
    for rest in rests:
        token = re.search(r"[_\-. /]([^_\-. /]+)$", rest)
        if token and not token[1].isdigit():
            groups[token[1].casefold()].append(rest)
    tails = set()
    for token, group in sorted(groups.items(), key=lambda item: -len(item[1]))[:MAX_TAILS]:
        if len(group) > 1 or token in MASK_WORDS | IMAGE_WORDS:
            tails.add(_common_tail(group, token))
    heads = set()
    common = os.path.commonprefix(rests)
    head = re.split(r"[\d/]", common)[0]
    if head and (head[-1] in SEPARATORS or all(rest[len(head) : len(head) + 1].isdigit() for rest in rests)):
        heads.add(head)
    affixes = [("", tail) for tail in sorted(tails)] + [(head, "") for head in sorted(heads)]
    if side.names and all(split and rest.casefold().endswith(f"_{split.casefold()}") for split, _, rest in side.names):
        return [("", "_{split}")]
    return affixes


def _common_tail(group: list[str], token: str) -> str:
    tail = os.path.commonprefix([rest[::-1] for rest in group])[::-1]
    if len(set(group)) == 1:
        tail = group[0][-len(token) - 1 :]
    words = re.search(r"(?:[_\-. /](?=[^_\-. /]*[^\d_\-. /])[^_\-. /]+)+$", tail)  # a number belongs to the id
    return words[0] if words else group[0][-len(token) - 1 :]


def _template(pattern: str, head: str = "", tail: str = "", suffix: str = "") -> str:
    return f"{pattern}/" * bool(pattern) + f"{head}{{id}}{tail}{suffix}"


def _pair(pattern: str, side: Side, other: str, masks: Side) -> list[Candidate]:
    """Candidates of images under one pattern and masks under another: only the surest sort."""
    if any((one in pattern) != (one in other) for one in ("{split}", "{folder}")):
        return []
    ours, theirs = [("", ""), *_affixes(side)], [("", ""), *_affixes(masks)]
    levels = [(ours[:1], theirs[:1]), (ours[:1], theirs[1:]), (ours[1:], theirs), (ours[:1], theirs)]
    for sure, (left, right) in enumerate(levels):
        found = []
        for affix in left:
            images = side.ids(*affix)
            for affix_of_mask in right:
                ids = masks.ids(*affix_of_mask)
                pairs = match(images, ids)
                equal = all(id == mask for id, mask in pairs.items())
                if pairs and 2 * len(set(pairs.values())) >= len(ids) and equal == (sure < 3):
                    layout = Layout("pairs", _template(pattern, *affix), _template(other, *affix_of_mask))
                    found.append(Candidate(layout, len(pairs), sure))
        several = len({one.layout.masks for one in found}) < len(found)  # x_ch0 and x_ch1 share the mask x
        if found and not (several and sure == 2):
            return found
    return []


def _pair_within(pattern: str, side: Side) -> list[Candidate]:
    """Candidates of images and masks in one folder, distinguished by a prefix or ending of the id."""
    affixes = _affixes(side)
    of_mask = [
        (head, tail)
        for head, tail in affixes + [(f"{word}{sep}", "") for word in sorted(MASK_WORDS) for sep in "_- "]
        if MASK_WORDS & set(re.findall(r"[^\W_]+", f"{head}{tail}".casefold()))
    ]
    found = []
    for affix in of_mask:
        ids = side.ids(*affix)
        if not ids:
            continue
        masks = {rest for *_, rest in side.names if rest.startswith(affix[0]) and rest.endswith(affix[1])}
        others = Side(side.role, [one for one in side.names if one[2] not in masks])
        for level, choices in enumerate(([("", "")], _affixes(others))):
            hits = []
            for own in choices:
                num = len(others.ids(*own) & ids)
                if num and 2 * num >= len(ids):
                    layout = Layout("pairs", _template(pattern, *own), _template(pattern, *affix))
                    hits.append(Candidate(layout, num, 1 + level))
            found += hits
            if hits:
                break
    return found


def recognise_suffixes(names: Iterable[PurePosixPath]) -> list[Candidate]:
    """Images and masks with one name in one folder, distinguished by suffix: x.jpg is the image, x.png its mask."""
    pictures = [name for name in names if is_picture(name)]
    suffixes = Counter(name.suffix for name in pictures)
    lossy = [suffix for suffix in suffixes if suffix.lower() in (".jpg", ".jpeg")]
    others = [suffix for suffix in suffixes if suffix.lower() not in (".jpg", ".jpeg")]
    if len(lossy) != 1 or len(others) != 1:
        return []
    ids = [{name.with_suffix("") for name in pictures if name.suffix == one} for one in (lossy[0], others[0])]
    num = len(ids[0] & ids[1])
    if 2 * num < max(map(len, ids)):
        return []
    sides = find_sides(names)
    if len(sides) != 1:
        return []
    pattern = next(iter(sides))
    layout = Layout("pairs", _template(pattern, suffix=lossy[0]), _template(pattern, suffix=others[0]))
    return [Candidate(layout, num, 1)]


def _words(template: str) -> set[str]:
    parts = [*template.split("/"), *re.split(r"[_\-. /]", template)]
    return {re.sub(r"[\W_]+", "", part).casefold() for part in parts}


def _best(found: list[Candidate]) -> list[Candidate]:
    """The candidates with the surest names; several if names are ambiguous."""
    found = [one for one in found if not _words(one.layout.masks) & set(SECONDARY)] or found
    for preferred in PREFERRED:
        found = [one for one in found if _words(one.layout.masks) & preferred] or found
    if not found:
        return []
    # Folders that mean image before others, then the candidates from which the least is cut off.
    by_role = [one for one in found if _words(one.layout.images) & IMAGE_WORDS]
    found = by_role or found
    surest = min(one.sure for one in found)
    return [one for one in found if one.sure == surest]
