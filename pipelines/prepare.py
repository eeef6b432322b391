"""Stage prepare: check, decode and split raw images and masks, set aside what is broken."""

import argparse
import dataclasses
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.console.progress import watched
from pipelines.core.command import run_command
from pipelines.core.data_sections import Prepare
from pipelines.core.files import check_outputs, replacing, write_json
from pipelines.core.full_disk import check_space
from pipelines.core.params import load_params
from pipelines.core.tables import write_rows
from pipelines.dataset.fingerprint import comparable, read_fingerprint, write_fingerprint
from pipelines.dataset.groups import find_groups
from pipelines.dataset.kinds import find_kinds
from pipelines.dataset.layouts import Problem, Sample, find_samples
from pipelines.dataset.loading import load_all, load_full
from pipelines.dataset.mask_files import check_ignore, limits_of
from pipelines.dataset.near_duplicates import Looks, find_duplicates
from pipelines.dataset.sample_buffer import Spool
from pipelines.dataset.sample_stats import Facts, check_foreground, write_samples
from pipelines.dataset.split_balance import Balance, propose_salt
from pipelines.dataset.splits import SPLITS, Place, check_apart, join, place
from unetpp.data.arrow_split import SplitWriter
from unetpp.data.manifest import Manifest, SplitFacts
from unetpp.errors import UserError
from unetpp.files import sha256

# A group of near-duplicates with so many images, and such a share of all, is told.
LARGE_GROUP, LARGE_SHARE = 10, 0.1
MEASURED = 16  # samples by whose size the space for all is told


class Seen(NamedTuple):
    """What is kept of a sample while its pixels wait on the disk."""

    id: str
    kind: str
    facts: Facts


def prepare(params: Prepare, raw: Path, out: Path) -> Manifest:
    """Write an Arrow file a split, tables of samples and of problems, manifest and fingerprint; return the manifest.

    The folder `out` is written whole or not at all, and the same raw files give the same bytes. Where a sample goes
    is known when all have been seen; until then the decoded ones wait on the disk, which takes their space twice.

    Raises:
        UserError: no samples, more broken ones than prepare.max_quarantined, ids without a group, an empty split or one
            without foreground, a group or a near-duplicate in two splits, a full disk.
    """
    if not (raw / "manifest.json").is_file():
        raise UserError(f"{raw}: found no manifest.json; expected what stage ingest writes: run `dvc repro ingest`")
    limits = limits_of(params)
    samples, problems = find_samples(raw, params.num_classes, params.classes, params.pages, limits, params.multilabel)
    check_ignore(samples, params.ignore)
    groups, volumes = find_groups(samples, params.groups), _same_volume(samples)
    kinds = find_kinds(samples, params.kinds)
    with replacing(out) as partial:
        partial.mkdir()
        looks = Looks(len(samples), partial)
        with Spool(partial / "spool") as spool:
            seen = _load(samples, kinds, params, raw, problems, looks, spool, out.parent)
            _check_quarantine(problems, len(seen), params.max_quarantined, raw)
            duplicates = _find_duplicates(samples, looks, params)
            places = _place(seen, join(groups, [*(pair[:2] for pair in duplicates), *volumes]), params)
            facts = {split: [one.facts for at, one in seen.items() if places[at].split == split] for split in SPLITS}
            check_foreground(facts, params.ignore, params.no_foreground)
            train = _write_splits(partial, samples, seen, places, spool, params)
        _write_tables(partial, samples, seen, places, duplicates, problems)
        alike = [(pair, "the same pixels") for pair in looks.same_pixels()]
        alike += [(pair, "slices of one volume") for pair in volumes]
        check_apart(
            partial,
            {one.id: groups[index] for index, one in seen.items()},
            [(seen[one].id, seen[other].id, why) for (one, other), why in alike if {one, other} <= seen.keys()],
        )
        manifest = Manifest(
            size=params.size,
            channels=params.channels,
            num_classes=params.num_classes,
            multilabel=params.multilabel,
            classes=list(params.classes) if params.classes and params.num_classes > 1 else None,
            splits={split: _describe(split, partial, seen, places) for split in SPLITS},
            val_full_sha256=sha256(partial / "val_full.arrow") if params.size is not None else None,
            num_groups=len({place.group for place in places.values()}),
            num_near_duplicates=len(duplicates),
            quarantined=len(problems),
            raw_sha256=sha256(raw / "manifest.json"),
            foreground_share=1 - train.class_pixels[0] / max(1, train.known_pixels),
            ignored_share=train.ignored_pixels / max(1, train.known_pixels + train.ignored_pixels),
            class_pixels=train.class_pixels,
        )
        manifest.write(partial)
        write_fingerprint(partial)
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
    """The samples that can be used, by index, with their looks and pixels kept; the others go to `problems`.

    The first of them tell how much space all will take in `folder`.
    """
    seen, num_bytes = {}, 0
    for index, loaded in load_all(samples, params, raw, problems):
        spool.put(index, loaded.image, loaded.mask)
        num_bytes += loaded.image.nbytes + loaded.mask.nbytes
        if len(seen) + 1 == min(MEASURED, len(samples)):  # twice: what waits, and what is written then
            check_space(folder, 2 * num_bytes * len(samples) // (len(seen) + 1), "prepare")
        kind = loaded.kind if kinds is None else kinds[index]
        looks[index], seen[index] = loaded.look, Seen(samples[index].id, kind, loaded.facts)
    return dict(sorted(seen.items()))  # processes answer in no order


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


def _place(seen: dict[int, Seen], joined: list[list[str]], params: Prepare) -> dict[int, Place]:
    """Where each sample goes, by the groups that its own is joined with; what is wrong with that is told."""
    kinds, members = [one.kind for one in seen.values()], [joined[index] for index in seen]
    _tell_large_groups(members)
    places = place(members, params)
    _check_balance(kinds, members, places, params)
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

    Where the network sees images at another size than their own, val is written at both and test at its own, at which
    predicted masks are delivered. These samples are decoded a second time: kept, the pixels of the whole set at their
    own sizes would fill the disk.
    """
    members = {split: [index for index in seen if places[index].split == split] for split in SPLITS}

    def write(name: str, indices: list[int]) -> SplitWriter:
        with SplitWriter(out / f"{name}.arrow", params.multilabel) as writer:
            for index in watched(indices, f"writing {name}, images"):
                writer.add(seen[index].id, seen[index].kind, *spool.take(index, 2))
        return writer

    train = write("train", members["train"])
    write("val", members["val"])
    for name, split in (("val_full", "val"), ("test", "test")) if params.size is not None else ():
        for number, arrays in load_full([samples[index] for index in members[split]], params):
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


def _check_balance(kinds: list[str], members: list[list[str]], places: list[Place], params: Prepare) -> None:
    """Refuse an empty split, and tell of a kind that is badly divided, with a salt that does better."""
    faults = Balance.of(kinds, places, params).faults()
    counts = Counter(place.split for place in places)
    if len(counts) == len(SPLITS) and not faults:
        return
    proposed = propose_salt(kinds, members, params)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="folder that stage ingest wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared splits")
    parser.add_argument("--split", type=Path, required=True, help="a copy of split.csv, for git to show what moved")
    parser.add_argument("--metrics", type=Path, required=True, help="the few numbers that one compares between runs")
    arguments = parser.parse_args()
    check_outputs([arguments.out], [arguments.split, arguments.metrics], [arguments.raw])
    manifest = prepare(load_params().prepare, arguments.raw, arguments.out)
    with replacing(arguments.split) as partial:
        shutil.copyfile(arguments.out / "split.csv", partial)
    for split, found in manifest.splits.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.items())
        print(f"prepare: {split:<5} {found.num_images:>5} images" + (f": {kinds}" if kinds else ""))
    print(
        f"prepare: {manifest.num_groups} groups, {manifest.num_near_duplicates} pairs of near-duplicates, see "
        f"{arguments.out / 'duplicates.csv'}"
    )
    print(f"prepare: {manifest.quarantined} files set aside, see {arguments.out / 'quarantine.csv'}")
    if manifest.ignored_share:
        print(f"prepare: {manifest.ignored_share:.1%} of the train pixels are ignored")
    which = "other train pixels" if manifest.ignored_share else "train pixels"
    print(f"prepare: {manifest.foreground_share:.1%} of the {which} are foreground")
    fingerprint = read_fingerprint(arguments.out)
    write_json(arguments.metrics, comparable(fingerprint))
    for warning in fingerprint["findings"]["warnings"]:
        print(f"prepare: {warning}")


if __name__ == "__main__":
    run_command(main)
