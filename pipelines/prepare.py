"""Stage prepare: check, decode and split raw images and masks, and set aside broken ones."""

import argparse
import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pipelines import detail
from pipelines.console.progress import watched
from pipelines.core.command import run_command
from pipelines.core.files import replacing, write_json
from pipelines.core.full_disk import check_space
from pipelines.core.outputs import check_outputs
from pipelines.core.params import load_params
from pipelines.core.sections.prepare import Prepare
from pipelines.core.tables import write_rows
from pipelines.dataset.fingerprint import comparable, read_fingerprint, write_fingerprint
from pipelines.dataset.given_splits import with_splits
from pipelines.dataset.groups import find_frames, find_groups, find_neighbours, find_pairs, group_frames, same_volume
from pipelines.dataset.kinds import find_kinds
from pipelines.dataset.layouts import Problem, Sample, find_samples, read_layout
from pipelines.dataset.loading import load_all, load_full
from pipelines.dataset.mask_files import check_meanings, class_names, limits_of
from pipelines.dataset.near_duplicates import Looks
from pipelines.dataset.sample_buffer import Spool
from pipelines.dataset.sample_stats import Facts, check_foreground, write_samples
from pipelines.dataset.split_balance import check_balance, tell_large_groups
from pipelines.dataset.splits import SPLITS, Place, check_apart, find_apart, join, place, tell_leaks
from pipelines.planning.advice import advise
from unetpp.data.arrow_split import SplitWriter
from unetpp.data.manifest import Manifest, SplitFacts
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.images.frame import as_size

MEASURED = 16  # samples by whose size the space for all is estimated


class Seen(NamedTuple):
    """What is kept of a sample while its pixels wait on disk."""

    id: str
    kind: str
    facts: Facts


def prepare(params: Prepare, raw: Path, out: Path) -> Manifest:
    """Write an Arrow file per split, tables of samples and of problems, manifest and fingerprint; return the manifest.

    The folder `out` is written completely or not at all, and the same raw files give the same bytes. The split of a
    sample is known when all have been seen; until then decoded samples wait on disk, which takes their space twice.

    Raises:
        UserError: no samples, more broken ones than prepare.max_quarantined, ids without a group, an empty split or one
            without foreground, a group or a near-duplicate in two splits, a full disk.
    """
    if not (raw / "manifest.json").is_file():
        raise UserError(f"{raw}: found no manifest.json; expected the output of stage ingest: run `dvc repro ingest`")
    limits = limits_of(params)
    samples, problems = find_samples(
        raw, params.num_classes, params.classes, params.pages, limits, params.multilabel, read_layout(raw)
    )
    samples = with_splits(samples, raw, params.split)
    check_meanings(samples, params)
    groups, volumes = find_groups(samples, params.groups), same_volume(samples)
    kinds = find_kinds(samples, params.kinds)
    with replacing(out) as partial:
        partial.mkdir()
        looks = Looks(len(samples), partial)
        with Spool(partial / "spool") as spool:
            seen = _load(samples, kinds, params, raw, problems, looks, spool, out.parent)
            _check_quarantine(problems, len(seen), params.max_quarantined, raw)
            given = [samples[index].split for index in seen]
            frames = find_frames({index: one.id for index, one in seen.items()}, samples, looks, params.groups)
            drawn = not any(given) or "val" not in given
            duplicates = find_pairs(samples, looks, frames if drawn else {}, params.near_duplicates)
            if drawn:
                groups = group_frames(groups, frames, params)
            same = looks.same_pixels() if params.near_duplicates else []
            joined = join(groups, [*(pair[:2] for pair in duplicates), *volumes, *same])
            places = _place(seen, joined, given, params)
            facts = {split: [one.facts for at, one in seen.items() if places[at].split == split] for split in SPLITS}
            check_foreground(facts, params.ignore, params.no_foreground)
            train = _write_splits(partial, samples, seen, places, spool, params)
        _write_tables(partial, samples, seen, places, duplicates, problems)
        alike = [(pair, "the same pixels") for pair in looks.same_pixels()]
        alike += [(pair, "slices of one volume or images of one mask") for pair in volumes]
        found = (
            partial,
            {one.id: groups[index] for index, one in seen.items()},
            [(seen[one].id, seen[other].id, why) for (one, other), why in alike if {one, other} <= seen.keys()],
        )
        neighbours, leaks = {}, []
        if any(given):
            neighbours = find_neighbours(frames, {index: at.split for index, at in places.items()})
            leaks = tell_leaks(find_apart(*found), neighbours)
        else:
            check_apart(*found)
        manifest = Manifest(
            size=as_size(params.size),
            fit=params.fit,
            channels=params.channels,
            num_classes=params.num_classes,
            multilabel=params.multilabel,
            classes=class_names(params),
            background=params.background,
            values={str(stored): name for stored, name in params.values.items()} if params.values else None,
            splits={split: _describe(split, partial, seen, places) for split in SPLITS},
            val_full_sha256=sha256(partial / "val_full.arrow") if params.size is not None else None,
            num_groups=len({place.group for place in places.values()}),
            num_near_duplicates=len(duplicates),
            quarantined=len(problems),
            raw_sha256=sha256(raw / "manifest.json"),
            foreground_share=1 - params.background * train.class_pixels[0] / max(1, train.known_pixels),
            ignored_share=train.ignored_pixels / max(1, train.known_pixels + train.ignored_pixels),
            class_pixels=train.class_pixels,
            given_split=any(given),
            sequences={"num": len({one.sequence for one in frames.values()}), "frames": len(frames), "near": neighbours}
            if frames
            else None,
            leaks=leaks,
        )
        manifest.write(partial)
        write_fingerprint(partial, advise)
    return manifest


def _load(
    samples: list[Sample],
    kinds: list[str] | None,
    params: Prepare,
    raw: Path,
    problems: list[Problem],
    looks: Looks,
    spool: Spool,
    folder: Path,
) -> dict[int, Seen]:
    """The samples that can be used, by index; their looks and pixels are kept, the others go to `problems`.

    The space that all will take in `folder` is estimated from the first ones.
    """
    seen, num_bytes = {}, 0
    for index, loaded in load_all(samples, params, raw, problems):
        spool.put(index, loaded.image, loaded.mask, loaded.instances)
        num_bytes += loaded.image.nbytes + loaded.mask.nbytes
        if len(seen) + 1 == min(MEASURED, len(samples)):  # twice: waiting, and written
            check_space(folder, 2 * num_bytes * len(samples) // (len(seen) + 1), "prepare")
        kind = loaded.kind if kinds is None else kinds[index]
        looks[index], seen[index] = loaded.look, Seen(samples[index].id, kind, loaded.facts)
    return dict(sorted(seen.items()))  # processes answer in any order


def _place(
    seen: dict[int, Seen], joined: list[list[str]], given: list[str | None], params: Prepare
) -> dict[int, Place]:
    """The place of each sample, by the groups that its own is joined with; faults are reported."""
    members = [joined[index] for index in seen]
    places = place(members, params, given=given)
    tell_large_groups(members)
    check_balance([one.kind for one in seen.values()], members, places, params, any(given))
    return dict(zip(seen, places, strict=True))


def _write_splits(
    out: Path,
    samples: list[Sample],
    seen: dict[int, Seen],
    places: dict[int, Place],
    spool: Spool,
    params: Prepare,
) -> SplitWriter:
    """Write the Arrow files, sorted by id; return the writer of train, which counted its pixels.

    If images are resized for the network, val is written at both sizes and test at its own, at which predicted masks
    are delivered. These samples are decoded a second time: keeping the pixels of the whole dataset at full size would
    fill the disk.
    """
    members = {split: [index for index in seen if places[index].split == split] for split in SPLITS}
    numbered = {index for index, one in seen.items() if one.facts.numbered}

    def write(name: str, indices: list[int]) -> SplitWriter:
        with SplitWriter(out / f"{name}.arrow", params.multilabel, params.background, bool(numbered)) as writer:
            for index in watched(indices, f"writing {name}, images"):
                image, mask, instances = spool.take(index, 3)
                packed = instances.tobytes() if index in numbered else b""
                writer.add(seen[index].id, seen[index].kind, image, mask, packed)
        return writer

    train = write("train", members["train"])
    write("val", members["val"])
    for name, split in (("val_full", "val"), ("test", "test")) if params.size is not None else ():
        for number, arrays in load_full([samples[index] for index in members[split]], params, bool(numbered)):
            spool.put(members[split][number], *arrays)
        write(name, members[split])
    if params.size is None:
        write("test", members["test"])
    return train


def _write_tables(
    out: Path,
    samples: list[Sample],
    seen: dict[int, Seen],
    places: dict[int, Place],
    duplicates: list[tuple[int, int, int, float]],
    problems: list[Problem],
) -> None:
    each = [(one, places[index]) for index, one in seen.items()]
    split = [{"id": one.id, "kind": one.kind} | at._asdict() for one, at in each]
    columns = ("id", "group", *(["kind"] if any(one.kind for one, _ in each) else []), "split", "fold")
    write_rows(out / "split.csv", columns, split)
    write_samples(out / "samples.csv", ((one.id, at.split, one.kind, *one.facts) for one, at in each))
    rows = [(samples[one].id, samples[other].id, bits, f"{alike:.3f}") for one, other, bits, alike in duplicates]
    write_rows(out / "duplicates.csv", ("id", "other", "distance", "correlation"), rows)
    fields = [field.name for field in dataclasses.fields(Problem)]
    write_rows(out / "quarantine.csv", fields, sorted(dataclasses.astuple(problem) for problem in problems))


def _describe(split: str, out: Path, seen: dict[int, Seen], places: dict[int, Place]) -> SplitFacts:
    kinds = Counter(one.kind for index, one in seen.items() if places[index].split == split)
    named = {kind: count for kind, count in sorted(kinds.items()) if kind}
    return SplitFacts(kinds.total(), sha256(out / f"{split}.arrow"), named)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="folder that stage ingest wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared splits")
    parser.add_argument("--split", type=Path, required=True, help="a copy of split.csv, in which git shows what moved")
    parser.add_argument("--metrics", type=Path, required=True, help="the few numbers to compare between runs")
    arguments = parser.parse_args()
    check_outputs([arguments.out], [arguments.split, arguments.metrics], [arguments.raw])
    manifest = prepare(load_params().prepare, arguments.raw, arguments.out)
    with replacing(arguments.split) as partial:
        shutil.copyfile(arguments.out / "split.csv", partial)
    counts = ", ".join(f"{found.num_images} {split}" for split, found in manifest.splits.items())
    kinds = sorted({kind for found in manifest.splits.values() for kind in found.kinds})
    print(f"prepare: images: {counts}" + (f"; kinds: {', '.join(kinds)}" if kinds else ""))
    for split, found in manifest.splits.items() if kinds else ():
        detail(f"prepare: {split}: " + ", ".join(f"{count} {kind}" for kind, count in found.kinds.items()))
    for leak in manifest.leaks:
        print(f"prepare: caution: {leak}")
    pairs, broken = manifest.num_near_duplicates, manifest.quarantined
    print(
        f"prepare: {manifest.num_groups} groups; near-duplicate pairs: {pairs}"
        + (f" (see {arguments.out / 'duplicates.csv'})" if pairs else "")
        + f"; files set aside: {broken}"
        + (f" (see {arguments.out / 'quarantine.csv'})" if broken else "")
    )
    if manifest.ignored_share:
        print(f"prepare: {manifest.ignored_share:.1%} of the train pixels are unlabelled")
    if manifest.background:
        which = "labelled train pixels" if manifest.ignored_share else "train pixels"
        print(f"prepare: {manifest.foreground_share:.1%} of the {which} are foreground")
    fingerprint = read_fingerprint(arguments.out)
    write_json(arguments.metrics, comparable(fingerprint))
    for warning in fingerprint["findings"]["warnings"]:
        print(f"prepare: {warning}")


if __name__ == "__main__":
    run_command(main)
