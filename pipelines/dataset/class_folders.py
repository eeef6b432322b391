"""Folders of masks for each class, masks/<class>/<id>: told from folders that are part of ids by prepare.classes."""

from pathlib import Path, PurePosixPath

from pipelines.storage.naming.templates import Found, Layout
from unetpp.errors import UserError


def order_class_folders(root: Path, layout: Layout, files: Found, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """The folders masks/<class>/ in the order of their class indices; none if masks are not in class folders.

    A folder in masks/ that is also in images/ is part of the ids, not a class.
    """
    images = set(files.images)
    masks = [PurePosixPath(id) for id in files.masks]
    shared = {PurePosixPath(id).parts[0] for id in images if "/" in id}
    found = {name.parts[0] for name in masks if len(name.parts) > 1}
    (in_images, in_masks) = (_folder(one) for one in (layout.images, layout.masks))
    if classes is not None and found & set(classes):
        both = sorted(shared & set(classes))
        if both:
            raise UserError(
                f"{root}: found {in_images}{both[0]}/ and {in_masks}{both[0]}/, while prepare.classes names "
                f"{both[0]!r}, so it may be a class or a part of ids; expected one of the two: rename the folder "
                f"{in_images}{both[0]}/ with its masks, or set prepare.classes to null"
            )
        others = sorted(found - set(classes)) or [
            files.masks[str(name)][0].name for name in masks if len(name.parts) == 1
        ]
        if others or set(classes) - found:
            what = in_masks + others[0] if others else f"no {in_masks}{sorted(set(classes) - found)[0]}/"
            raise UserError(
                f"{root}: found {what}; expected a folder of masks for each of prepare.classes and nothing else in "
                f"{in_masks}: {', '.join(classes)}: correct prepare.classes, or move what is not a class"
            )
        return classes
    likely = find_class_folders(files)
    if likely:
        listed = ", ".join(sorted(likely))
        raise UserError(
            f"{root}: found a folder of masks for each of {listed}; expected them in prepare.classes: set "
            f"prepare.classes=[{listed}] in the order of their class indices, and prepare.num_classes to "
            f"{len(likely) + 1} (or to 1 for foreground only, or to {len(likely)} with prepare.multilabel=true if "
            "they overlap)"
        )
    return ()


def find_class_folders(files: Found) -> set[str]:
    """Folders with masks of images that are outside any such folder: they can only be classes."""
    shared = {id.split("/")[0] for id in files.images if "/" in id}
    parts = [id.partition("/") for id in files.masks]
    return {head for head, _, rest in parts if rest and head not in shared and rest in files.images}


def _folder(template: str) -> str:
    return template.partition("{id}")[0]
