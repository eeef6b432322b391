"""The split that a dataset brings along: train, val and test by folders, by lists of names, or by a table."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipelines.core.tables import read_rows
from pipelines.dataset.layouts import Sample
from pipelines.storage.naming.layout_names import is_list, list_names
from pipelines.storage.naming.templates import SPLIT_OF, composed, without_suffix
from unetpp.errors import UserError

EXPECTED = "expected a CSV file with the columns id and split (train, val or test)"
NAME_COLUMNS = ("id", "image", "image_id", "image_name", "image_path", "filename", "file_name", "file", "path", "name")
TRAIN = {"train", "trainval"}  # lists; where there are none, unlisted images are train
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "phase")


def with_splits(samples: Sequence[Sample], root: Path, split: str) -> list[Sample]:
    """The samples with the dataset's own split, or all with None if it has none. The decision is printed.

    Args:
        root: folder of the raw files, in which lists and tables are searched.
        split: `prepare.split`: auto, hash, or the path of a table.

    Raises:
        UserError: the table does not exist or lacks ids, an id is in two splits, or lists are in two places.
    """
    found, source = _find(samples, root, split)
    counts = Counter(found.values())
    if not found or "train" not in counts or len(counts) < 2:
        if found:
            print(f"prepare: {source} name only {_counts(counts)}, so the dataset is divided by hash")
        return [replace(sample, split=None) for sample in samples]
    print(f"prepare: the dataset's own split, by {source}: {_counts(counts)}")
    if "test" not in counts:
        print("prepare: it has no test: its val is our test, and our val is drawn from its train by hash")
    elif "val" not in counts:
        print("prepare: it has no val: val is drawn from its train by hash")
    others = [sample.id for sample in samples if sample.id not in found]
    if others:
        print(f"prepare: {len(others)} images are left out, as {source} do not name them, such as {others[0]}")
    chosen = [replace(one, split=found[one.id]) for one in samples if one.id in found]
    if "test" in counts:
        return chosen
    return [replace(one, split="test" if one.split == "val" else one.split) for one in chosen]


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test") if counts[split])


def _find(samples: Sequence[Sample], root: Path, split: str) -> tuple[dict[str, str], str]:
    """The split of each id that has one, and its source."""
    if split == "hash":
        return {}, ""
    if split != "auto":
        return _read_table(samples, Path(split)), split
    if by_folder := {sample.id: sample.split for sample in samples if sample.split}:
        return by_folder, "folders"
    lists: dict[PurePosixPath, dict[str, PurePosixPath]] = defaultdict(dict)
    tables = []
    for name in list_names(root):
        stem = name.stem.lower()
        if is_list(name) and stem in {*SPLIT_OF, "trainval"}:
            lists[name.parent][SPLIT_OF.get(stem, stem)] = name
        elif is_list(name) and (stem in ("split", "splits") or (stem == "metadata" and _divides(root / name))):
            tables.append(name)
    told = {folder: files for folder, files in lists.items() if len(files) > 1 or not files.keys() & TRAIN}
    segmentation = {folder: files for folder, files in told.items() if folder.name.lower() == "segmentation"}
    told = segmentation or told
    if len(told) + len(tables) > 1:
        places = ", ".join([*(f"{folder}/" for folder in told), *map(str, tables)])
        raise UserError(
            f"{root}: found lists of splits in {places}; expected one of them: name a table by prepare.split, or set "
            "it to hash"
        )
    for files in told.values():
        if "train" not in files and "trainval" in files:
            files["train"] = files["trainval"]
        files.pop("trainval", None)
        found = _read_lists(samples, root, files)
        if found and "train" not in files:
            found = {sample.id: "train" for sample in samples} | found
        return found, ", ".join(str(name) for name in files.values())
    if tables:
        return _read_table(samples, root / tables[0], whole=False), str(tables[0])
    return {}, ""


class _Names:
    """Ids by the names of images in lists: the id, the file's name, with or without suffix and folders."""

    def __init__(self, samples: Sequence[Sample], root: Path | None):
        self._ids: dict[str, set[str]] = defaultdict(set)
        for sample in samples:
            names = {sample.id, sample.group if sample.page else sample.id, sample.image.stem}
            if root is not None:
                names.add(without_suffix(PurePosixPath(sample.image.relative_to(root).as_posix())))
            for name in names:
                parts = composed(str(name)).split("/")
                for start in range(len(parts)):
                    self._ids["/".join(parts[start:])].add(sample.id)
        self._group = {sample.id: sample.group for sample in samples}

    def find(self, text: str) -> set[str]:
        """The ids that a line or a cell names: one, the slices of one volume, or none."""
        text = composed(text.strip().strip("\"'").replace("\\", "/"))
        for name in dict.fromkeys((text, *text.replace(",", " ").split()[:1])):
            for plain in dict.fromkeys((name, without_suffix(PurePosixPath(name)) if name else "")):
                parts = plain.split("/")
                for start in range(len(parts)):
                    ids = self._ids.get("/".join(parts[start:]), set())
                    if len(ids) == 1 or (ids and len({self._group[id] or id for id in ids}) == 1):
                        return ids
        return set()


def _read_lists(samples: Sequence[Sample], root: Path, files: dict[str, PurePosixPath]) -> dict[str, str]:
    names = _Names(samples, root)
    rows = []
    for split, name in files.items():
        lines = (root / name).read_text(encoding="utf-8-sig", errors="replace").splitlines()
        rows += [(line, split, str(name)) for line in lines if line.strip()]
    return _collect(names, rows)


def _read_table(samples: Sequence[Sample], path: Path, whole: bool = True) -> dict[str, str]:
    """`whole`: every sample must have a row."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: found {found}; {EXPECTED}, or auto or hash: correct prepare.split")
    try:
        table = read_rows(path)
    except ValueError as error:
        raise UserError(f"{path}: found no CSV in UTF-8 ({error}); {EXPECTED}: save it as one") from None
    of_name, of_split = _columns_of(table)
    if of_name is None or of_split is None:
        raise UserError(f"{path}: found the columns {', '.join(table[0] if table else ()) or 'none'}; {EXPECTED}")
    rows = []
    for number, row in enumerate(table, 2):
        split = SPLIT_OF.get(row[of_split].strip().lower())
        if split is None:
            raise UserError(f"{path}: line {number}: found the split {row[of_split]!r}; {EXPECTED}")
        rows.append((row[of_name], split, f"{path}: line {number}"))
    found = _collect(_Names(samples, None), rows)
    missing = [sample.id for sample in samples if sample.id not in found]
    if missing and whole:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{path}: found no row for {len(missing)} of {len(samples)} ids: {', '.join(missing[:5])}{more}; expected "
            "a row id,split for every image, the id as in split.csv: add them"
        )
    return found


def _divides(path: Path) -> bool:
    """Whether a table that may be about something else names images, and train, val or test for each."""
    try:
        of_name, of_split = _columns_of(table := read_rows(path))
    except ValueError:
        return False
    if of_name is None or of_split is None:
        return False
    return all(row[of_split].strip().lower() in SPLIT_OF for row in table)


def _columns_of(table: list[dict[str, str]]) -> tuple[str | None, str | None]:
    columns = {name.lstrip("\ufeff").strip().lower(): name for name in (table[0] if table else {})}
    found = [next((columns[name] for name in some if name in columns), None) for some in (NAME_COLUMNS, SPLIT_COLUMNS)]
    return found[0], found[1]


def _collect(names: _Names, rows: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """The split of each id by rows of (name, split, location of the row)."""
    found: dict[str, str] = {}
    unknown = []
    for text, split, where in rows:
        ids = names.find(text)
        if not ids:
            unknown.append((where, text))
        for id in ids:
            if found.setdefault(id, split) != split:
                raise UserError(
                    f"{where}: found {id!r} in {split}, and earlier in {found[id]}; expected one split per image: "
                    "remove one of the two, or set prepare.split to hash"
                )
    if unknown:
        where, text = unknown[0]
        print(f"prepare: {where}: {len(unknown)} names match no image with a mask, such as {text.strip()}")
    return found
