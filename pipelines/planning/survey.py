"""A survey of a data set: its layout, what its masks contain, and the facts of a sample of its images."""

import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from pipelines.core.params import Params, override
from pipelines.core.sections.ingest import Ingest
from pipelines.core.temporary_folders import scratch
from pipelines.dataset.class_folders import find_class_folders
from pipelines.dataset.coco import find_categories, load_annotations
from pipelines.dataset.data_warnings import MUCH_OVERLAP
from pipelines.dataset.fingerprint import summarise
from pipelines.dataset.given_splits import with_splits
from pipelines.dataset.layouts import Sample, find_samples
from pipelines.dataset.loading import load_sample
from pipelines.dataset.mask_files import limits_of
from pipelines.dataset.sample_stats import TEXT, Facts
from pipelines.planning.choices import Plan
from pipelines.planning.class_tables import find_table, role_of
from pipelines.planning.facts import Facts as SetFacts
from pipelines.planning.facts import facts_of
from pipelines.planning.mask_facts import add_up
from pipelines.planning.meaning import read_meaning
from pipelines.planning.orientation import Orientation, find_orientation, look_at
from pipelines.storage.folder_walk import walk
from pipelines.storage.naming.layout_names import choose, is_annotations, list_names
from pipelines.storage.naming.refusals import HOW
from pipelines.storage.naming.templates import Layout, find_files
from unetpp.data.manifest import Manifest
from unetpp.errors import FileError, UserError
from unetpp.images.pictures import count_pages, read_picture
from unetpp.network.masks import MAX_LABELS

MOST_PAIRS = 300  # decoded
MOST_MASKS = 1000  # whose values are read
MOST_PX = 40_000_000  # decoded of images, and of masks: takes seconds
MANY_FOLDERS = 6  # fewer are probably classes or sites, not patients
FIRST = 3
OFTEN = 0.1  # share of the images from which a look is a kind
MANY_OBJECTS = 5  # in an image, as microscopy shows them
MOST_FOLDERS = 12  # that are kinds
MEANING = {
    f"prepare.{key}"
    for key in ("values", "background", "num_classes", "classes", "ignore", "mask_threshold", "multilabel")
}


@dataclass
class Survey:
    """What was found in a set."""

    facts: SetFacts
    fingerprint: dict
    orientation: Orientation
    samples: list[Sample]  # all of them
    sizes: Counter = field(default_factory=Counter)  # of the images looked at: (height, width)
    looks: Counter = field(default_factory=Counter)  # of these images, those that are not rare
    broken: float = 0.0  # share of the samples that cannot be decoded


@contextmanager
def _told(plan: Plan) -> Iterator[None]:
    """Add what stages would print to what was found."""
    told = io.StringIO()
    with redirect_stdout(told):
        yield
    lines = (re.sub(r"^(ingest|prepare): ", "", line) for line in told.getvalue().splitlines())
    plan.found += [line for line in lines if line]


@contextmanager
def laid_out(root: str | Path, params: Ingest, plan: Plan) -> Iterator[tuple[Path, Layout, list[str]]]:
    """A folder of links to the files of a set as stage ingest would write them, its layout, and all names at `root`."""
    links_to = [Path(one).expanduser() for one in params.links_to]
    given = Layout("pairs", **params.layout.model_dump()) if params.layout else None
    root = Path(root).expanduser()
    sizes, problems = walk(root, "move that into the folder, or name it in ingest.links_to: [{}]", links_to)
    if problems:
        raise problems[0]
    with _told(plan):
        layout, kept = choose(sizes, str(root), given)
    if layout.kind == "pairs" and layout != Layout("pairs"):
        plan.found.append(f"images are {layout.images}, masks are {layout.masks} (without suffixes)")
    with scratch() as folder:
        made = set()
        for name, original in kept.items():
            target = folder / name
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            target.symlink_to(root.absolute() / original)
        try:
            yield folder, layout, [str(name) for name in sizes]
        except FileError as error:
            raise _at_home(error) from None
        except UserError as error:  # about links of ours: name the files themselves
            names = {f"{folder}/{name}": f"{root}/{original}" for name, original in kept.items()}
            told = re.sub(rf"{re.escape(str(folder))}[^:]*", lambda hit: names.get(hit[0], str(root)), str(error))
            raise UserError(told) from None


def survey(
    raw: Path,
    layout: Layout,
    root: str | Path,
    names: Sequence[str],
    base: Params,
    plan: Plan,
    kept: Collection[str] = (),
) -> Survey:
    """Look at the set in the folder `raw`, as stage ingest writes it, and choose what prepare needs to read it.

    Args:
        root: its real place, with tables of classes among its files `names`.
        base: params for everything that is not chosen.
        kept: keys set by the user; one that defines what masks mean settles all of them.

    Raises:
        UserError: no images with masks.
    """
    with _told(plan):
        samples, lost = _find(raw, layout, base, plan)
        samples = with_splits(samples, raw, base.prepare.split)
    files = [sample for sample in samples if len(sample.masks) == 1 and sample.classes is None]
    if settled := MEANING & set(kept):
        plan.found.append(f"masks are read as set by {', '.join(sorted(settled))}")
        for key in MEANING:
            plan.params.pop(key, None)
    elif files:
        masks = [(sample.masks[0], sample.page) for sample in _spread(files, MOST_MASKS)]
        found = add_up(_within(masks), limits_of(base.prepare))
        shown = [mask.relative_to(raw).as_posix() for mask, _ in masks]
        read_meaning(found, find_table(Path(root), names), shown, plan)
    elif samples[0].classes is None and samples[0].drawing is None:
        plan.found.append("masks have one file per object: one class, instances are kept")
        plan.choose("prepare.num_classes", 1, "one mask file per object")
    _choose_channels(samples, base, plan, kept)
    looking = {"prepare.size": None, "train.crop_px": 128, "prepare.kinds": "looks"}
    found, limit = _decode(samples, override(base, plan.values | looking), plan), base.prepare.max_quarantined
    if (unusable := (lost + found.broken * len(samples)) / (lost + len(samples))) > limit:
        plan.asked.append(
            f"{unusable:.0%} of the images cannot be used, and stage prepare stops beyond {limit:.0%}: correct them, "
            f"or set in params.yaml  prepare.max_quarantined: {min(1.0, unusable + 0.01):.2f}"
        )
    share, classes = found.fingerprint["masks"]["overlap_share"], plan.values.get("prepare.classes") or []
    if share > MUCH_OVERLAP and samples[0].classes and 1 < len(classes) <= MAX_LABELS and not settled:
        plan.choose("prepare.multilabel", True, f"classes overlap on {share:.0%} of the foreground")
        plan.choose("prepare.num_classes", len(classes), "one label per folder in masks/")
        return _decode(samples, override(base, plan.values | looking), plan)
    return found


def _choose_channels(samples: Sequence[Sample], base: Params, plan: Plan, kept: Collection[str]) -> None:
    """Of the first images: what they have where it is neither grey nor RGB, which are converted to each other."""
    counts: Counter = Counter()
    for sample in samples[:FIRST]:
        with suppress(FileError):  # which is told where it is decoded as prepare does it
            picture = read_picture(sample.image, sample.page, limits_of(base.prepare))
            counts[1 if picture.palette is not None else picture.num_channels] += 1
    num = counts.most_common(1)[0][0] if counts else 1
    if num not in (1, 3) and "prepare.channels" not in kept:
        plan.choose("prepare.channels", num, f"images have {num} channels")


def _spread(items: Sequence, most: int) -> list:
    """At most `most` items, spread evenly, always the same ones."""
    if len(items) <= most:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _within(masks: list[tuple[Path, int | None]]) -> list[tuple[Path, int | None]]:
    """Fewer of them if files are large."""
    sizes = [mask.stat().st_size for mask, _ in _spread(masks, 20)]
    mean = max(1.0, sum(sizes) / max(1, len(sizes)))
    return _spread(masks, max(20, min(len(masks), int(MOST_PX / mean / 2))))


def _find(raw: Path, layout: Layout, base: Params, plan: Plan) -> tuple[list[Sample], int]:
    """All samples, and how many are lost; classes that folders or annotations name, and volumes, go into the plan."""
    names = list_names(raw)
    limits = limits_of(base.prepare)
    if layout.kind == "coco":
        _choose_categories(raw, names, plan)
    elif layout.kind == "pairs" and (folders := sorted(find_class_folders(find_files(names, layout)))):
        listed = ", ".join(folders)
        plan.found.append(f"masks are in one folder per class, {len(folders)} classes: {listed}")
        plan.choose("prepare.classes", folders, "the folders in masks/, in alphabetical order")
        num = len(folders) + 1 if len(folders) > 1 else 1
        plan.choose("prepare.num_classes", num, "one class per folder in masks/, and background")
    tiffs = [name for name in names if name.suffix.lower() in (".tif", ".tiff")]
    pages = 1
    for name in tiffs[:FIRST]:
        try:
            pages = max(pages, count_pages(raw / name, limits))
        except FileError:
            continue
    if pages > 1:
        plan.found.append(f"files are volumes of {pages} or more pages: each page is a sample")
        plan.choose("prepare.pages", "slices", "multi-page TIFFs: slices of a volume, which stay in one split")
    params = override(base, plan.values).prepare
    samples, problems = find_samples(
        raw, params.num_classes, params.classes, params.pages, limits, params.multilabel, layout
    )
    folders = Counter(sample.id.rpartition("/")[0] for sample in samples)
    if len(folders) >= MANY_FOLDERS and len(samples) >= 2 * len(folders) and not any(one.split for one in samples):
        plan.choose(
            "prepare.groups.pattern",
            "^(.+)/",
            f"images are in {len(folders)} folders, perhaps patients or recordings: each stays in one split",
        )
    if problems:
        told = f"files without a partner, or with several: {len(problems)}, such as {problems[0].file}: "
        plan.found.append(told + problems[0].reason)
        if not samples:
            raise UserError(f"{raw}: found no image with a mask: {plan.found[-1]}; expected equal names, or {HOW}")
    return samples, len({one.id for one in problems})


def _choose_categories(raw: Path, names: Sequence[PurePosixPath], plan: Plan) -> None:
    """Of COCO, in the order of their ids."""
    files = {raw / name: load_annotations(raw / name) for name in names if is_annotations(name)}
    categories = {id: role_of(name) for id, name in find_categories(files).items()}
    called = [categories[id] for id in sorted(categories, key=lambda id: (isinstance(id, str), id))]
    plan.found.append(f"COCO annotations of {len(called)} categories: {', '.join(called[:12])}")
    if len(called) > 1:
        plan.choose("prepare.classes", called, "COCO's categories, in the order of their ids")
        plan.choose("prepare.num_classes", len(called) + 1, "COCO's categories and background")
    else:
        plan.choose("prepare.num_classes", 1, "one category and background")


def _at_home(error: FileError) -> FileError:
    """The error with the path of the file itself, not of the link to it."""
    return FileError(error.path.resolve(), error.reason, error.fix)


def _decode(samples: Sequence[Sample], params: Params, plan: Plan) -> Survey:
    """The facts of a sample of the pairs, by the functions of stage prepare."""
    prepare = params.prepare
    rows, looks, broken, pixels = [], [], [], 0
    sizes: Counter = Counter()
    chosen = _spread(samples, MOST_PAIRS)
    order = np.random.default_rng(0).permutation(len(chosen))  # where images are large, the first of these alone
    taken = {}
    for index in order:
        if pixels > MOST_PX and len(taken) >= 10:
            break
        sample = chosen[index]
        try:
            loaded = load_sample(sample, prepare)
        except FileError as error:
            broken.append(error)
            continue
        pixels += loaded.mask.size
        taken[index] = (sample, loaded.facts, loaded.kind, look_at(loaded.image, loaded.mask, prepare.num_classes))
    for index in sorted(taken):
        sample, facts, kind, look = taken[index]
        rows.append((sample.id, "train", kind, *facts))
        looks.append(look)
        sizes[facts.height, facts.width] += 1
    if broken:
        plan.found.append(f"{len(broken)} of {len(chosen)} sampled pairs cannot be used, such as {_at_home(broken[0])}")
    if not rows:
        raise _at_home(broken[0])
    names = ("id", "split", "kind", *Facts._fields)
    table = {
        name: np.array([row[place] for row in rows], dtype=object if name in TEXT else np.float64)
        for place, name in enumerate(names)
    }
    manifest = Manifest(
        size=None,
        channels=prepare.channels,
        num_classes=prepare.num_classes,
        multilabel=prepare.multilabel,
        classes=list(prepare.classes) if prepare.classes and prepare.num_classes > 1 else None,
        splits={},
    )
    fingerprint = summarise(table, manifest, [], [])
    orientation = find_orientation(looks)
    facts = facts_of(
        fingerprint,
        num_images=len(samples),
        upright=orientation.upright,
        mirrored=orientation.mirrored,
        turned=orientation.turned,
        sideways=orientation.sideways,
    )
    looks_of = Counter(row[2] for row in rows)
    common = Counter({look: number for look, number in looks_of.items() if number >= OFTEN * len(rows)})
    return Survey(
        facts, fingerprint, orientation, list(samples), sizes, common, len(broken) / (len(broken) + len(rows))
    )
