"""Stage prepare: check, decode and split raw images and masks, set aside what is broken."""

import argparse
import csv
import functools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from pipelines.duplicates import Look, Looks, find_duplicates, look_at
from pipelines.facts import describe, write_samples
from pipelines.files import disk_errors, replacing, sha256, write_json
from pipelines.groups import find_groups
from pipelines.labels import check_foreground, check_ignore, read_labels, resize_mask
from pipelines.layouts import Problem, Sample, find_samples
from pipelines.params import load_params
from pipelines.processes import Died, answers, num_cores
from pipelines.salts import Balance, propose_salt
from pipelines.sections import Prepare
from pipelines.splits import SPLITS, Place, check_apart, join, place
from pipelines.spool import Spool
from pipelines.stage import run_command
from unetpp.data import SplitWriter
from unetpp.errors import FileError, UserError
from unetpp.images import Limits, convert, decode_image, read_header, resize
from unetpp.inference import find_limits

# In 547 images of BBBC038 the darkest bright-field or stained one has a median brightness of 0.52 and the
# brightest fluorescence one 0.2; the palest stain has a mean chroma of 0.047, and grey images have 0.
DARK = 0.35
COLOURED = 0.03
# A group of near-duplicates with so many images, and such a share of all, is told.
LARGE_GROUP, LARGE_SHARE = 10, 0.1
DRAWN = ("ignored_px", "foreground_px")  # facts of what is not background


def find_kind(image: np.ndarray) -> str:
    """The kind of microscopy, a function of the decoded image (H, W, 3) uint8, uint16 or float32 alone.

    "fluorescence": the median brightness (mean of the channels) is below 0.35 of the image's own bright end
    for uint16 (for floats, above their least value), of the full scale for uint8. Of the others, "tissue" has a
    mean chroma (largest less smallest channel) above 0.03, "bright-field" has not.
    """
    pixels = image.astype(np.float32)
    if image.dtype == np.float32:
        low, high = find_limits(image)
        pixels = ((image.astype(np.float64) - low) * (65535 / (high - low or 1.0))).astype(np.float32)
    # Cameras of 12 and 14 bits fill the lower end of 16: there, full scale says nothing about bright or dark.
    pixels /= 255 if image.dtype == np.uint8 else max(1.0, float(np.percentile(pixels, 99.5)))
    red, green, blue = cv2.split(pixels)  # NumPy is slow along a short axis
    if np.median((red + green + blue) / 3) < DARK:
        return "fluorescence"
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return "tissue" if chroma.mean() > COLOURED else "bright-field"


def resize_sample(
    image: np.ndarray, mask: np.ndarray, size: int, num_classes: int, multilabel: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, C) and mask (H, W) uint8 to size x size by one geometry (`labels.resize_mask`)."""
    if mask.shape == (size, size):
        return image, mask
    return resize(image, size), resize_mask(mask, size, num_classes, multilabel)


class Loaded(NamedTuple):
    """A sample as it is written, and what is known of it as it was."""

    kind: str
    image: np.ndarray  # (H, W, C) uint8 or uint16
    mask: np.ndarray  # (H, W) uint8
    facts: dict[str, str | int | float]  # see pipelines/facts.py
    look: Look


def load_sample(sample: Sample, params: Prepare) -> Loaded:
    """Decode, check, describe and resize a sample.

    Raises:
        FileError: a file that cannot be decoded, or an image and a mask that do not fit together.
    """
    limits = Limits(params.max_pixels, params.max_file_mib)
    image = decode_image(sample.image, channels=3, page=sample.page, limits=limits)
    kind, look = find_kind(image), look_at(image)
    labels = read_labels(sample, image, params.num_classes, limits, params.multilabel, params.ignore)
    seen, mask = convert(image, params.channels), labels.mask
    if params.size is not None:
        seen, mask = resize_sample(seen, mask, params.size, params.num_classes, params.multilabel)
    header = read_header(sample.image, sample.page)
    facts = describe(header, image, labels, mask, params.multilabel)
    return Loaded(kind, seen, mask, facts, look)


def prepare(params: Prepare, raw: Path, out: Path) -> dict:
    """Write an Arrow file a split, tables of samples and of problems, manifest and fingerprint; return the manifest.

    The folder `out` is written whole or not at all, and the same raw files give the same bytes. Where a sample goes
    is known when all have been seen; until then the decoded ones wait on the disk, which takes their space twice.

    Raises:
        UserError: no samples, more broken ones than prepare.max_quarantined, ids without a group, an empty split, a
            group or a near-duplicate in two splits, a full disk.
    """
    if not (raw / "manifest.json").is_file():
        raise UserError(f"{raw}: found no manifest.json; expected what stage ingest writes: run `dvc repro ingest`")
    limits = Limits(params.max_pixels, params.max_file_mib)
    samples, problems = find_samples(raw, params.num_classes, params.classes, params.pages, limits, params.multilabel)
    check_ignore(samples, params.ignore)
    groups = find_groups(samples, params.groups)
    facts, names = {}, ()
    with replacing(out) as partial, disk_errors(out.parent):
        partial.mkdir()
        looks, kinds = Looks(len(samples), partial), {}
        with Spool(partial / "spool") as spool:
            for index, loaded in _load_all(samples, params, raw, problems):
                spool.put(index, loaded.image, loaded.mask)
                looks[index], kinds[index] = loaded.look, loaded.kind
                names, facts[index] = tuple(loaded.facts), tuple(loaded.facts.values())  # a third of a dict's memory
            _check_quarantine(problems, len(kinds), params.max_quarantined, raw)
            kinds = dict(sorted(kinds.items()))  # processes answer in no order
            duplicates, volumes = _find_duplicates(samples, looks, params), _same_volume(samples)
            members = join(groups, [*((one, other) for one, other, *_ in duplicates), *volumes])
            _tell_large_groups([members[index] for index in kinds])
            places = dict(zip(kinds, place([members[index] for index in kinds], params), strict=True))
            _check_balance(kinds, members, places, params)
            train = _write_splits(partial, samples, kinds, places, spool, params.multilabel)
            ignored, foreground = (sum(row[names.index(name)] for row in facts.values()) for name in DRAWN)
            check_foreground(ignored, foreground, params.ignore)
        ids = [sample.id for sample in samples]
        described = ((ids[index], places[index].split, kind, *facts[index]) for index, kind in kinds.items())
        write_samples(partial / "samples.csv", names, described)
        rows = [(ids[one], ids[other], bits, f"{alike:.3f}") for one, other, bits, alike in duplicates]
        _write_csv(partial / "duplicates.csv", ("id", "other", "distance", "correlation"), rows)
        quarantined = sorted((problem.id, problem.file, problem.reason, problem.fix) for problem in problems)
        _write_csv(partial / "quarantine.csv", ("id", "file", "reason", "fix"), quarantined)
        known = kinds.keys()
        pairs = [(looks.same_pixels(), "the same pixels"), (volumes, "slices of one volume")]
        check_apart(
            partial,
            {ids[index]: groups[index] for index in kinds},
            [(ids[one], ids[other], why) for found, why in pairs for one, other in found if {one, other} <= known],
        )
        counts = Counter((place.split, kinds[index]) for index, place in places.items())
        manifest = {
            "size": params.size,
            "channels": params.channels,
            "num_classes": params.num_classes,
            "multilabel": params.multilabel,
            "classes": list(params.classes) if params.classes and params.num_classes > 1 else None,
            "splits": {
                split: {
                    "num_images": sum(number for (where, _), number in counts.items() if where == split),
                    "sha256": sha256(partial / f"{split}.arrow"),
                    "kinds": {kind: number for (where, kind), number in sorted(counts.items()) if where == split},
                }
                for split in SPLITS
            },
            "num_groups": len({place.group for place in places.values()}),
            "num_near_duplicates": len(duplicates),
            "quarantined": len(problems),
            "raw_sha256": sha256(raw / "manifest.json"),
            "foreground_share": 1 - train.class_pixels[0] / max(1, train.known_pixels),  # of the annotated train pixels
            "ignored_share": train.ignored_pixels / max(1, train.known_pixels + train.ignored_pixels),  # of train
            "class_pixels": train.class_pixels,  # of train; of labels first the pixels without one
        }
        write_json(partial / "manifest.json", manifest)
        # Late, here and below: the processes that only decode need no charts.
        from pipelines.data_report import write_fingerprint

        write_fingerprint(partial)
    return manifest


def _load_all(
    samples: list[Sample], params: Prepare, raw: Path, problems: list[Problem]
) -> Iterator[tuple[int, Loaded]]:
    """(index, sample) as they are decoded by several processes; what is broken goes to `problems` instead."""
    load = functools.partial(_load, params)
    died = []
    num_processes = min(params.num_workers, num_cores())
    for index, answer in tqdm(answers(load, samples, num_processes), total=len(samples), unit="image", disable=None):
        if isinstance(answer, Died):
            died.append(index)
        elif isinstance(answer, Loaded):
            yield index, answer
        else:
            problems.append(Problem.of(answer, samples[index].id, raw))
    # Where a process was killed, another sample may have taken the memory. Alone, it is this one's doing.
    for index in sorted(died):
        answer = _load_alone(load, samples[index])
        if isinstance(answer, Loaded):
            yield index, answer
        else:
            problems.append(Problem.of(answer, samples[index].id, raw))


def _load(params: Prepare, sample: Sample) -> Loaded | FileError:
    try:
        return load_sample(sample, params)
    except FileError as error:
        return error


def _load_alone(load: Callable[[Sample], Loaded | FileError], sample: Sample) -> Loaded | FileError:
    [(_, answer)] = answers(load, [sample], 1)
    if not isinstance(answer, Died):
        return answer
    files = (sample.image, *sample.masks)
    parts = [replace(sample, masks=masks) for masks in ((), *((mask,) for mask in sample.masks))]
    with closing(answers(functools.partial(_try, load), parts, 1)) as tried:
        index = next((index for index, part in tried if isinstance(part, Died)), 0)
    return FileError(
        files[index],
        f"found a file that cannot be decoded (the process at it {answer.how}); expected one whose decoding ends and "
        "fits in memory",
        "fetch it again or remove it",
    )


def _try(load: Callable[[Sample], object], sample: Sample) -> None:
    """Only whether the process survives counts; a part of a sample may be wrong in many ways."""
    with suppress(Exception):
        load(sample)


def _find_duplicates(samples: list[Sample], looks: Looks, params: Prepare) -> list[tuple[int, int, int, float]]:
    """As `find_duplicates`, without the slices of one volume, of which neighbours are always alike."""
    near = params.near_duplicates
    found = find_duplicates(looks, near.distance, near.correlation) if near else []
    return [pair for pair in found if not samples[pair[0]].group or samples[pair[0]].group != samples[pair[1]].group]


def _tell_large_groups(members: list[list[str]]) -> None:
    """A joined group that holds much of the set is seldom one picture, and moves with its highest member."""
    joined = Counter(tuple(names) for names in members if len(names) > 1)
    if not joined:
        return
    largest, number = joined.most_common(1)[0]
    if number >= LARGE_GROUP and number > LARGE_SHARE * len(members):
        print(
            f"warning: near-duplicates join {number} of {len(members)} images in one group, {largest[0]} among them: "
            "look at duplicates.csv; raise prepare.near_duplicates.correlation if they are no duplicates, or name what "
            "belongs together by prepare.groups"
        )


def _same_volume(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Pairs (first, other) of slices of a volume, which stay together whatever prepare.groups says."""
    first: dict[str, int] = {}
    volumes = [(first.setdefault(sample.group, index), index) for index, sample in enumerate(samples) if sample.group]
    return [(one, other) for one, other in volumes if one != other]


def _write_splits(
    out: Path, samples: list[Sample], kinds: dict[int, str], places: dict[int, Place], spool: Spool, multilabel: bool
) -> SplitWriter:
    """Write the Arrow files and split.csv, sorted by id; return the writer of train, which counted its pixels."""
    with ExitStack() as stack:
        writers = {split: stack.enter_context(SplitWriter(out / f"{split}.arrow", multilabel)) for split in SPLITS}
        for index, kind in kinds.items():
            image, mask = spool.take(index, 2)
            writers[places[index].split].add(samples[index].id, kind, image, mask)
    rows = [
        (samples[index].id, place.group, kinds[index], place.split, "" if place.fold is None else place.fold)
        for index, place in places.items()
    ]
    _write_csv(out / "split.csv", ("id", "group", "kind", "split", "fold"), rows)
    return writers["train"]


def _check_quarantine(problems: list[Problem], num_good: int, limit: float, raw: Path) -> None:
    # A sample counts once, however many of its files are broken.
    num_broken = len({problem.id for problem in problems})
    share = num_broken / max(1, num_broken + num_good)
    if share <= limit and num_good:
        return
    first = sorted(problems, key=lambda problem: (problem.id, problem.file))[:5]
    more = [f"  and {len(problems) - len(first)} more"] if len(problems) > len(first) else []
    lines = [f"  {problem.file}: {problem.reason}: {problem.fix}" for problem in first] + more
    raise UserError(
        f"{raw}: {num_broken} of {num_broken + num_good} samples are broken ({share:.0%}); expected at most "
        f"prepare.max_quarantined = {limit:.0%}: correct these files, or raise the limit\n" + "\n".join(lines)
    )


def _check_balance(kinds: dict[int, str], members: list[list[str]], places: dict[int, Place], params: Prepare) -> None:
    """Refuse an empty split, and tell of a kind that is badly divided, with a salt that does better."""
    names, joined = list(kinds.values()), [members[index] for index in kinds]
    balance = Balance.of(names, list(places.values()), params)
    counts = Counter(place.split for place in places.values())
    faults = balance.faults()
    if len(counts) == len(SPLITS) and not faults:
        return
    proposed = propose_salt(names, joined, params)
    advice = f"prepare.salt={proposed[0]}" if proposed else "no other prepare.salt of those tried does better"
    if len(counts) < len(SPLITS):
        found = ", ".join(f"{counts[split]} for {split}" for split in SPLITS)
        raise UserError(
            f"prepare.shares: found {found}; expected at least one image for each: add images, set other shares or "
            f"another prepare.salt than {params.salt!r} ({advice})"
        )
    print("\n".join(f"warning: {fault}" for fault in faults))
    if proposed:
        better = "; ".join(
            f"{kind} " + ", ".join(f"{number} in {part}" for part, number in found.items())
            for kind, found in proposed[1].counts.items()
        )
        print(f"warning: {advice} would give {better}; it moves images, so take it before the first training or never")
    else:
        print(f"warning: {advice}")


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="folder that stage ingest wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared splits")
    parser.add_argument("--split", type=Path, required=True, help="a copy of split.csv, for git to show what moved")
    parser.add_argument("--reports", type=Path, required=True, help="folder of data.html and data.json")
    arguments = parser.parse_args()
    manifest = prepare(load_params().prepare, arguments.raw, arguments.out)
    with replacing(arguments.split) as partial:
        shutil.copyfile(arguments.out / "split.csv", partial)
    for split, found in manifest["splits"].items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items())
        print(f"prepare: {split:<5} {found['num_images']:>5} images: {kinds}")
    print(
        f"prepare: {manifest['num_groups']} groups, {manifest['num_near_duplicates']} pairs of near-duplicates, see "
        f"{arguments.out / 'duplicates.csv'}"
    )
    print(f"prepare: {manifest['quarantined']} files set aside, see {arguments.out / 'quarantine.csv'}")
    if manifest["ignored_share"]:
        print(f"prepare: {manifest['ignored_share']:.1%} of the train pixels are ignored")
    which = "other train pixels" if manifest["ignored_share"] else "train pixels"
    print(f"prepare: {manifest['foreground_share']:.1%} of the {which} are foreground")
    from pipelines.data_report import write_data_report

    for warning in write_data_report(arguments.out, arguments.reports):
        print(f"prepare: {warning}")
    print(f"prepare: look at {arguments.reports / 'data.html'} before you train")


if __name__ == "__main__":
    run_command(main)
