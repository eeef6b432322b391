"""The layouts of images and masks in a folder, and the files that do not fit into them.

pairs      two templates, such as images/{id} and masks/{id} (`pipelines.storage.naming.templates`)
classes    a folder of masks for each class, distinguished from pairs by prepare.classes
BBBC038    <id>/images/<name>.<ext> and <id>/masks/<one file per object>.<ext>
COCO       images and the annotation files that name them (`pipelines.storage.naming.layout_names.is_annotations`)

In any of them a multi-page TIFF is a volume if prepare.pages is slices: each page is a sample.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pipelines.dataset.class_folders import order_class_folders
from pipelines.dataset.coco import Drawing, read_annotations
from pipelines.storage.naming.layout_names import check_names, is_annotations, list_names, select
from pipelines.storage.naming.refusals import EXPECTED
from pipelines.storage.naming.templates import SPLIT_OF, Found, Layout, composed, find_files
from unetpp.errors import FileError, UserError
from unetpp.files import read_json
from unetpp.images.pictures import Limits, count_pages


@dataclass(frozen=True)
class Sample:
    """An image and its mask files: one, one per object or class, or none if shapes are drawn."""

    id: str
    image: Path
    masks: tuple[Path, ...]
    group: str | None = None  # known from the layout: slices of a volume, images of one mask
    split: str | None = None  # train, val or test, if the dataset has its own split
    page: int | None = None  # of the image and of each mask, counted from 1
    classes: tuple[int, ...] | None = None  # the class index of each mask file
    drawing: Drawing | None = None  # of COCO


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used. `file` is relative to the root, with slashes."""

    id: str
    file: str
    reason: str
    fix: str

    @classmethod
    def of(cls, error: FileError, id: str, root: Path) -> "Problem":
        """The problem of an error, in a sample of a dataset under `root`."""
        return cls(id, error.path.relative_to(root).as_posix(), error.reason, error.fix)


def find_samples(
    root: Path,
    num_classes: int = 1,
    classes: tuple[str, ...] | None = None,
    pages: str = "refuse",
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    multilabel: bool = False,
    layout: Layout | None = None,
) -> tuple[list[Sample], list[Problem]]:
    """Samples and problems under `root`, each sorted by id.

    Args:
        layout: from `read_layout`; if None, it is recognised.
        num_classes, classes, pages, multilabel: of section `prepare` in params.yaml.
        limits: for counting a file's pages.

    Raises:
        UserError: no such folder, no images at all, no masks at all, or an ambiguous layout.
    """
    if not root.is_dir():
        raise UserError(f"{root}: found {'a file' if root.exists() else 'no such folder'}; {EXPECTED}")
    names = list_names(root)
    layout = layout or check_names(names, str(root))
    chosen, _ = select(names, layout)
    names = [name for name in names if name in chosen]
    if layout.kind == "coco":
        samples, problems = _find_coco(root, names, layout, num_classes, classes, multilabel)
    elif layout.kind == "bbbc038":
        samples, problems = _find_bbbc038(root, names)
    else:
        found = find_files(names, layout)
        samples, problems = _find_pairs(root, layout, found, order_class_folders(root, layout, found, classes))
    if pages == "slices":
        samples = [slice for sample in samples for slice in _slices(sample, root, limits, problems)]
    return sorted(samples, key=lambda sample: sample.id), sorted(problems, key=lambda one: (one.id, one.file))


def read_layout(root: Path) -> Layout | None:
    """The layout that stage ingest found or was given, from manifest.json; None for built-in images."""
    found = read_json(root / "manifest.json", "run `dvc repro ingest`").get("layout")
    return Layout(**found) if found else None


def _by_id(files: dict[str, list[PurePosixPath]], problems: list[Problem]) -> dict[str, PurePosixPath]:
    """One file for each id; names that differ only by case, suffix or Unicode form are problems."""
    same = defaultdict(list)
    for id, names in files.items():
        same[composed(id.casefold())] += [(id, name) for name in names]
    for group in same.values():
        if len(group) > 1:
            others = ", ".join(str(name) for _, name in group)
            reason = f"names differ only by case, suffix or Unicode form: {others}"
            problems += [Problem(id, str(name), reason, "rename one") for id, name in group]
    return {group[0][0]: group[0][1] for group in same.values() if len(group) == 1}


def _find_pairs(
    root: Path, layout: Layout, found: Found, classes: tuple[str, ...]
) -> tuple[list[Sample], list[Problem]]:
    """With `classes`, a mask file for each of them; an empty mask means that a class does not occur."""
    problems: list[Problem] = []
    images = _by_id(found.images, problems)
    heads = [f"{name}/" for name in classes] or [""]
    masks = []
    for head in heads:
        inside = {id.removeprefix(head): names for id, names in found.masks.items() if id.startswith(head)}
        masks.append(_by_id(inside, problems))
    mask_of = {id: id for id in images} if classes else {id: found.mask_of.get(id, id) for id in images}
    # A name that clashes on one side is already reported; its partner is not a separate problem.
    clashing = {problem.id.casefold() for problem in problems}
    for head, files in zip(heads, masks, strict=True):
        for id, name in images.items():
            if mask_of[id] not in files:
                wanted = layout.masks.replace("{id}", f"{head}{id}")
                known = "its masks have clashing names" if id.casefold() in clashing else f"no mask {wanted}.png"
                problems.append(Problem(id, str(name), known, "add it or remove the image"))
        used = set(mask_of.values())
        for id, name in files.items():
            if id not in used:
                wanted = layout.images.replace("{id}", id)
                known = "its images have clashing names" if id.casefold() in clashing else f"no image {wanted}.<ext>"
                problems.append(Problem(id, str(name), known, "add it or remove the mask"))
    whole = [id for id in images if all(mask_of[id] in files for files in masks)]
    indices = tuple(range(1, len(classes) + 1)) or None
    several = {mask for mask, number in Counter(mask_of[id] for id in whole).items() if number > 1}
    return [
        Sample(
            id,
            root / images[id],
            tuple(root / name for files in masks for name in (files[mask_of[id]], *found.more.get(mask_of[id], ()))),
            group=mask_of[id] if mask_of[id] in several else None,
            split=found.splits.get(id),
            classes=indices,
        )
        for id in whole
    ], problems


def _find_bbbc038(root: Path, names: list[PurePosixPath]) -> tuple[list[Sample], list[Problem]]:
    folders: dict[str, dict[str, list[PurePosixPath]]] = defaultdict(lambda: {"images": [], "masks": []})
    for name in names:
        if len(name.parts) == 3:
            folders[name.parts[0]][name.parts[1]].append(name)
    samples, problems = [], []
    by_case = defaultdict(list)
    for id in folders:
        by_case[composed(id.casefold())].append(id)
    for id, found in folders.items():
        images, masks = found["images"], found["masks"]
        clashing = by_case[composed(id.casefold())]
        if len(clashing) > 1:
            problems.append(
                Problem(id, id, f"names differ only by case or Unicode form: {', '.join(clashing)}", "rename one")
            )
        elif len(images) != 1:
            reason = f"found {len(images)} image files; expected one"
            problems.append(Problem(id, f"{id}/images", reason, "keep one image in each folder"))
        elif not masks:
            problems.append(Problem(id, str(images[0]), f"no mask in {id}/masks", "add them or remove the image"))
        else:
            samples.append(Sample(composed(id), root / images[0], tuple(root / mask for mask in masks)))
    return samples, problems


def _find_coco(
    root: Path,
    names: list[PurePosixPath],
    layout: Layout,
    num_classes: int,
    classes: tuple[str, ...] | None,
    multilabel: bool,
) -> tuple[list[Sample], list[Problem]]:
    problems: list[Problem] = []
    found = find_files(names, Layout("pairs", layout.images, "masks/{id}"))
    images = _by_id(found.images, problems)
    clashing = {problem.file for problem in problems}
    listed = Listed({composed(str(name)): id for id, same in found.images.items() for name in same}, found.splits)
    paths = [root / name for name in names if is_annotations(name)]
    drawings, errors = read_annotations(
        paths, num_classes, classes, multilabel, lambda path, name: listed.find(path.relative_to(root), name)
    )
    problems += [Problem.of(error, id, root) for id, error in errors]
    for file, drawing in drawings.items():
        if file not in listed.files:
            path = drawing.file.relative_to(root).as_posix()
            reason = f"found {file} among its images; expected {layout.images.partition('{')[0]}{file} to exist"
            problems.append(Problem(file, path, reason, "add the image or remove its entry"))
    annotated = {found.splits.get(listed.files[file]) for file in drawings if file in listed.files}
    samples, silent = [], Counter()
    for id, name in images.items():
        drawing, split = drawings.get(composed(str(name))), found.splits.get(id)
        if drawing is not None:
            samples.append(Sample(id, root / name, (), split=split, drawing=drawing))
        elif split and split not in annotated:
            silent[split] += 1
        elif str(name) not in clashing:
            reason = "no entry among the images of the annotations"
            problems.append(Problem(id, str(name), reason, "add one (without annotations, if it shows no object)"))
    for split, number in silent.items():
        print(f"prepare: {number} images of {split} have no annotations and are left out")
    return samples, problems


@dataclass(frozen=True)
class Listed:
    """The images of a COCO dataset, by their names in annotation files."""

    files: dict[str, str]  # id by name relative to the root
    splits: dict[str, str]  # by id

    def find(self, path: Path, name: str) -> str:
        """The file that `name` means in the annotation file `path`: relative to the root, images/ or the file's own
        folder; or the one with this ending, in the split of the annotation file's name. Else `name` itself."""
        name = composed(name)
        for start in ("", "images/", f"{path.parent.as_posix()}/"):
            if start + name in self.files:
                return start + name
        ending = [file for file in self.files if file.endswith(f"/{name.rpartition('images/')[2]}")]
        if len(ending) > 1:
            words = set(re.findall(r"[a-z]+", path.as_posix().lower()))
            said = {SPLIT_OF[word] for word in words & set(SPLIT_OF)}
            ending = [file for file in ending if self.splits.get(self.files[file]) in said]
        return ending[0] if len(ending) == 1 else name


def _slices(sample: Sample, root: Path, limits: Limits, problems: list[Problem]) -> list[Sample]:
    """The pages of a volume as samples of its group, or the sample itself if the image has one page."""
    try:
        num_pages = count_pages(sample.image, limits)
        counts = {mask: count_pages(mask, limits) for mask in sample.masks}
    except FileError as error:
        problems.append(Problem.of(error, sample.id, root))
        return []
    other = next((mask for mask, count in counts.items() if count != num_pages), sample.image)
    if other != sample.image or (sample.drawing is not None and num_pages > 1):
        masks = f"{counts.get(other, 'no')} pages" if other != sample.image else "annotations without pages"
        problem = FileError(
            other,
            f"found {masks} for the {num_pages} pages of {sample.image.name}; expected a mask page for each",
            "export the volume and its masks again with as many pages, as TIFF",
        )
        problems.append(Problem.of(problem, sample.id, root))
        return []
    if num_pages == 1:
        return [sample]
    return [
        replace(sample, id=f"{sample.id}@{page:04}", group=sample.group or sample.id, page=page)
        for page in range(1, num_pages + 1)
    ]
