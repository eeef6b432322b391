"""What the names of folders mean: images or masks, train, val or test; and the pictures by such patterns of folders."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from pipelines.storage.naming.templates import SPLIT_OF, composed, is_picture, without_suffix

IMAGE_WORDS = frozenset(
    """image images img imgs original originals input inputs jpegimages leftimg8bit photo photos picture pictures raw
    rgb tissueimages frame frames slices scans volume volumes tiles patches sat satellite aerial""".split()  # noqa: SIM905  (a list of words reads as words)
)
MASK_WORDS = frozenset(
    """mask masks label labels lbl lbls gt gts groundtruth groundtruths truth annot annots anno annos annotation
    annotations seg segs segmentation segmentations segmentationclass segmentationobject gtfine gtcoarse target
    targets trimap trimaps manual manual1 manual2 1stmanual 2ndmanual 1stho 2ndho labelids labeltrainids instanceids
    instancetrainids contour contours roi rois matte mattes silhouette silhouettes map matting stuffthingmaps""".split()  # noqa: SIM905
)


class Part(NamedTuple):
    text: str  # with {split} instead of the word for it
    role: str | None  # image | mask
    split: str | None


@dataclass
class Side:
    """The pictures under one folder pattern: split, {folder}, and the rest of each name without its suffix."""

    role: str | None = None
    names: list[tuple[str | None, str, str]] = field(default_factory=list)

    def ids(self, head: str = "", tail: str = "") -> set[str]:
        """The ids of the names with this head and tail, with the split in front."""
        found = set()
        for split, folder, rest in self.names:
            end = tail.replace("{split}", split or "")
            if rest.startswith(head) and rest.endswith(end) and len(rest) > len(head) + len(end):
                id = rest[len(head) : len(rest) - len(end)]
                found.add("/".join(filter(None, (split, folder, id))))
        return found


def read_part(text: str) -> Part:
    """What a folder's name means: train, val or test, images or masks."""
    low = text.casefold()
    if low in SPLIT_OF:
        return Part("{split}", None, text)
    splits = "|".join(sorted(SPLIT_OF, key=len, reverse=True))
    words = "|".join(sorted(IMAGE_WORDS | MASK_WORDS | {"set", "data"}, key=len, reverse=True))
    words += r"|\d{4}"  # train2017
    hit = re.fullmatch(rf"(?P<s>{splits})[\W_]*({words})|({words})[\W_]*(?P<t>{splits})", low)
    span = hit and (hit.span("s") if hit["s"] else hit.span("t"))
    tokens = [*re.findall(r"[^\W_]+", low), re.sub(r"[\W_]+", "", low)]
    if hit and span:
        tokens += [re.sub(r"[\W_]+", "", low[: span[0]] + low[span[1] :])]
    role = "mask" if MASK_WORDS & set(tokens) else "image" if IMAGE_WORDS & set(tokens) else None
    if span is None and role and (inner := re.search(rf"(?<![^\W_])({splits})(?![^\W_])", low)):
        span = inner.span()
    if span is None and role is None and (last := re.fullmatch(rf".+[\W_]({splits})", low)):  # uavid_train
        span = last.span(1)
    if span is None:
        return Part(text, role, None)
    return Part(text[: span[0]] + "{split}" + text[span[1] :], role, text[slice(*span)])


def find_sides(names: Iterable[PurePosixPath], by_folder: bool = False) -> dict[str, Side]:
    """The pictures by the pattern of their folders: up to the first folder that means images or masks, and a folder
    for the split next to it. The rest is part of the id.

    Args:
        by_folder: other folders before the one that means images or masks are {folder}, such as one per patient.
    """
    sides: dict[str, Side] = defaultdict(Side)
    known: dict[tuple[str, ...], tuple[str, int, str | None, str | None, str]] = {}
    for name in names:
        if is_picture(name):
            folders = name.parts[:-1]
            if folders not in known:
                known[folders] = _read_folders(folders, by_folder)
            pattern, end, role, split, folder = known[folders]
            sides[pattern].role = role
            rest = composed("/".join(PurePosixPath(without_suffix(name)).parts[end:]))
            sides[pattern].names.append((split, folder, rest))
    found = {split for side in sides.values() for split, *_ in side.names if split}
    if len({SPLIT_OF[split.casefold()] for split in found}) > 1:
        return dict(sides)
    only = next(iter(found), "")  # a single split divides nothing
    return {
        pattern.replace("{split}", only): Side(side.role, [(None, folder, rest) for _, folder, rest in side.names])
        for pattern, side in sides.items()
    }


def _read_folders(folders: tuple[str, ...], by_folder: bool) -> tuple[str, int, str | None, str | None, str]:
    """The pattern of folders, how many of them it covers, their role, the word for the split, {folder}."""
    parts = [read_part(folder) for folder in folders]
    first = next((at for at, part in enumerate(parts) if part.role), None)
    if first is None:
        first = next((at for at, part in enumerate(parts) if part.split), None)
        if first is None:
            return "", 0, None, None, ""
    while first + 1 < len(folders) and folders[first + 1] == folders[first]:  # twice the same, as archives leave it
        first += 1
    end, split = first + 1, next((part.split for part in parts[: first + 1] if part.split), None)
    while end < len(parts) and not split and re.fullmatch(r"\{split\}\d*", parts[end].text):  # val2017
        end, split = end + 1, parts[end].split
    # annotations/trimaps/; but masks/ stays as it is
    while end < len(parts) and parts[end].role == "mask" and folders[end - 1].casefold() in ("annotations", "gt"):
        end += 1
    texts, seen = [], ""
    for folder, part in zip(folders[:end], parts[:end], strict=True):  # a second split word is a name
        texts.append(folder if part.split and seen not in ("", folder) else part.text)
        seen = seen or (folder if part.split else "")
    role = next((part.role for part in reversed(parts[:end]) if part.role), None)
    folder = ""
    if by_folder and role:  # the last of the folders without meaning
        nothing = [at for at, part in enumerate(parts[:first]) if not part.split]
        while len(nothing) > 1 and nothing[-1] - nothing[0] != len(nothing) - 1:
            nothing.pop(0)
        if nothing:
            folder = "/".join(folders[nothing[0] : nothing[-1] + 1])
            texts[nothing[0] : nothing[-1] + 1] = ["{folder}"]
    return "/".join(texts), end, role, split, folder
