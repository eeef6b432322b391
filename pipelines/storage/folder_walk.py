"""The files of a folder that a user names: links stay inside it, and only plain files are opened."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pipelines.storage.naming.layout_names import is_junk
from unetpp.errors import FileError, UserError

MAX_ENTRIES = 1_000_000
MAX_FILE_BYTES = 2**36  # for a sparse file, which can declare any size
PLAIN = "a device, pipe or socket; expected plain files"


def walk(root: Path, fix: str, links_to: Iterable[Path] = ()) -> tuple[dict[PurePosixPath, int], list[FileError]]:
    """The size of each file under `root` by its relative name, sorted, and problems. Junk is left out.

    A link is followed if its resolved target is in `root`, or in one of `links_to`.

    Args:
        fix: what to do about a link that leads elsewhere; {} is its target.

    Raises:
        UserError: more than MAX_ENTRIES.
    """
    trees = [Path(os.path.realpath(one)) for one in (root, *links_to)]
    files: dict[PurePosixPath, int] = {}
    problems: list[FileError] = []
    # Each with the real paths of itself and of its parents.
    folders: list[tuple[PurePosixPath, tuple[Path, ...]]] = [(PurePosixPath(), (trees[0],))]
    num_entries = 0
    while folders:
        folder, way = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                links = {folder / entry.name: entry.is_symlink() for entry in entries}
        except OSError as error:
            problems.append(_unreadable(root / folder, "folder", error))
            continue
        num_entries += len(links)
        if num_entries > MAX_ENTRIES:
            raise UserError(f"{root}: found more than {MAX_ENTRIES} entries, up to {str(folder)!r}; split it")
        for name, is_link in links.items():
            path, real = root / name, way[-1] / name.name
            if is_junk(name):
                continue
            try:
                if is_link:
                    real = Path(os.path.realpath(path, strict=True))
                    if not any(real.is_relative_to(tree) for tree in trees):
                        reason = f"found a link that leads out of {root}, to {real}; expected only links inside it"
                        problems.append(FileError(path, reason, fix.format(real)))
                        continue
                facts = path.stat()
            except OSError as error:
                problems.append(_unreadable(path, f"link to {os.readlink(path)}" if is_link else "file", error))
                continue
            if stat.S_ISDIR(facts.st_mode) and real in way:
                reason = f"found a link that leads back to {real}, a parent folder of it; expected none"
                problems.append(FileError(path, reason, "remove it"))
            elif stat.S_ISDIR(facts.st_mode):
                folders.append((name, (*way, real)))
            elif not stat.S_ISREG(facts.st_mode):
                problems.append(FileError(path, f"found {PLAIN}", "remove it"))
            elif facts.st_size > MAX_FILE_BYTES:
                reason = f"found {facts.st_size} bytes; expected at most {MAX_FILE_BYTES} per file"
                problems.append(FileError(path, reason, "remove it, or cut it up"))
            else:
                files[name] = facts.st_size
    return dict(sorted(files.items())), sorted(problems, key=lambda problem: problem.path)


def _unreadable(path: Path, kind: str, error: OSError) -> FileError:
    reason = f"found a {kind} that cannot be read ({error.strerror}); expected a readable one"
    return FileError(path, reason, "correct its permissions or its target, or remove it")
