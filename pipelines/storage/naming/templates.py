"""A layout of pairs as two templates, such as `{split}/{id}` and `{split}annot/{id}`, and the files that match them.

A template is a file name relative to the root, without its suffix. `{id}` may span folders; `{split}` is a folder or
a part of a name that means train, val or test; `{folder}` is one or more folders, such as one per patient. If a
template contains them, a sample's id begins with the split and the folder.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath

from unetpp.images.pictures import SUFFIXES

SPLIT_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_OF |= {"test": "test", "testing": "test", "testa": "test", "testb": "test"}  # the last two: GlaS
SPLIT_OF |= {"tr": "train", "ts": "test"}  # imagesTr and imagesTs of nnU-Net
SEPARATORS = "_-. /"


def composed(text: str) -> str:
    """The text in the one Unicode form in which names are compared: macOS and Linux use different ones."""
    return unicodedata.normalize("NFC", text)


def is_picture(name: PurePosixPath) -> bool:
    """By the suffix only."""
    return name.suffix.lower() in SUFFIXES


def without_suffix(name: PurePosixPath) -> str:
    """The name of a picture without its suffix; other names are unchanged."""
    return str(name.with_suffix("") if is_picture(name) else name)


@dataclass(frozen=True)
class Layout:
    """The layout of a dataset: `pairs` by their templates; `coco` by that of its images; `bbbc038` has none."""

    kind: str  # pairs | coco | bbbc038
    images: str = "images/{id}"
    masks: str = "masks/{id}"

    @cached_property
    def patterns(self) -> tuple[re.Pattern, re.Pattern]:
        """Of the names of images and of masks."""
        return _pattern(self.images), _pattern(self.masks)

    @property
    def line(self) -> str:
        """In the form of `-S`; in params.yaml it is layout: {...} in section ingest."""
        return f"\"ingest.layout={{images: '{self.images}', masks: '{self.masks}'}}\""


def _pattern(template: str) -> re.Pattern:
    text = ""
    for part in re.split(r"(\{id\}|\{split\}|\{folder\})", template):
        if part == "{id}":
            text += "(?P=id)" if "(?P<id>" in text else "(?P<id>.+)"
        elif part == "{folder}":
            text += "(?P<folder>.+)"
        elif part == "{split}":  # the same word if repeated
            words = "|".join(sorted(SPLIT_OF, key=len, reverse=True))
            text += "(?P=split)" if "(?P<split>" in text else f"(?P<split>{words})"
        else:
            text += re.escape(composed(part))
    if not template.lower().endswith(SUFFIXES):
        suffixes = "|".join(re.escape(suffix) for suffix in SUFFIXES)
        # Further masks of an image are numbered: x_mask, x_mask_1.
        text += rf"(?P<number>_\d+)?({suffixes})" if text.endswith(("mask", "seg", "label")) else rf"({suffixes})"
    return re.compile(text, re.IGNORECASE | re.DOTALL)


@dataclass
class Found:
    """The files that a layout's templates match, by id. Several with one id differ only by case, suffix or Unicode."""

    images: dict[str, list[PurePosixPath]] = field(default_factory=lambda: defaultdict(list))
    masks: dict[str, list[PurePosixPath]] = field(default_factory=lambda: defaultdict(list))
    more: dict[str, list[PurePosixPath]] = field(default_factory=lambda: defaultdict(list))  # x_mask_1 next to x_mask
    splits: dict[str, str] = field(default_factory=dict)  # of an image, by id, if the layout says it
    mask_of: dict[str, str] = field(default_factory=dict)  # by the id of the image
    left_out: list[str] = field(default_factory=list)  # sentences


def find_files(names: Iterable[PurePosixPath], layout: Layout) -> Found:
    """The images and masks of a layout of pairs. Unlabelled images are left out if names show it: Pascal
    VOC's, those of a split without any mask, and companions of an image (x_color next to x and x_mask)."""
    found, (is_image, is_mask) = Found(), layout.patterns
    for name in names:
        if not is_picture(name):
            continue
        text = composed(str(name))
        if hit := is_mask.fullmatch(text):
            (found.more if hit.groupdict().get("number") else found.masks)[_id(hit)].append(name)
        elif hit := is_image.fullmatch(text):
            id = _id(hit)
            found.images[id].append(name)
            if split := hit.groupdict().get("split"):
                found.splits[id] = SPLIT_OF[split.lower()]
    head, _, tail = layout.masks.partition("{id}")
    ending = tail and "{" not in tail and not tail.lower().endswith(SUFFIXES)
    if ending and head != layout.images.partition("{id}")[0]:
        bare = Layout("pairs", masks=f"{head}{{id}}").patterns[1]  # some masks may lack the ending of others
        for name in filter(is_picture, names):
            hit = bare.fullmatch(composed(str(name)))
            if hit and (id := _id(hit)) in found.images and id not in found.masks:
                found.masks[id].append(name)
    found.mask_of = match(found.images, found.masks)
    _leave_out(found, layout)
    if "train" not in found.splits.values() or len(set(found.splits.values())) < 2:
        found.splits = {}  # they divide nothing
    return found


def split_by_names(layout: Layout, names: list[PurePosixPath]) -> Layout:
    """With {split} in front of {id} if the name of every image begins with one: train_1 and testA_1, as in GlaS."""
    if "{split}" in layout.images:
        return layout
    num_pairs = len(find_files(names, layout).mask_of)
    for separator in "_-":
        images, masks = (text.replace("{id}", f"{{split}}{separator}{{id}}") for text in (layout.images, layout.masks))
        found = find_files(names, by_split := Layout(layout.kind, images, masks))
        if found.splits and len(found.mask_of) == num_pairs:
            return by_split
    return layout


def _id(hit: re.Match) -> str:
    """With the folder's own word for the split."""
    return "/".join(filter(None, map(hit.groupdict().get, ("split", "folder", "id"))))


def match(images: Collection[str], masks: Collection[str]) -> dict[str, str]:
    """The mask of each image: with the same id; or, if no image has one, with the longest id that is a prefix of the
    image's up to a separator (`cell1` of `cell1_ch0`)."""
    same = {id: id for id in images if id in masks}
    if same:
        return same
    longest = {}
    for id in images:
        ends = (at for at in range(len(id) - 1, 0, -1) if id[at] in SEPARATORS and id[:at] in masks)
        if end := next(ends, None):
            longest[id] = id[:end]
    return longest


def _leave_out(found: Found, layout: Layout) -> None:
    bare = [id for id in found.images if id not in found.mask_of]
    annotated = {found.splits.get(id) for id in found.mask_of}
    companions, silent, unlabelled = [], defaultdict(list), []
    beside = layout.images.rpartition("/")[0] == layout.masks.rpartition("/")[0]
    for id in bare:
        split = found.splits.get(id)
        if split not in annotated and found.mask_of:
            silent[split].append(id)
        elif "jpegimages" in layout.images.lower():
            unlabelled.append(id)
        elif beside and any(id[at] in SEPARATORS and id[:at] in found.mask_of for at in range(1, len(id))):
            companions.append(id)
    for split, ids in silent.items():
        found.left_out.append(f"{len(ids)} images of {split} have no masks and are left out")
    if unlabelled:
        found.left_out.append(f"{len(unlabelled)} images without a mask in {layout.masks.rpartition('/')[0]}/ left out")
    for id in (*companions, *unlabelled, *(id for ids in silent.values() for id in ids)):
        del found.images[id]
        found.splits.pop(id, None)
