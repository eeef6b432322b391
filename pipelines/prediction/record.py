"""Which images of a folder of outputs are done: a hidden file with a line of JSON for each."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RECORD = ".unetpp-predicted"
Facts = tuple[str, int, int]  # of an image: its path, when it was changed (ns), bytes


def facts_of(image: Path) -> Facts:
    """By what an image is known again.

    Raises:
        OSError: it is not there.
    """
    found = image.stat()
    return os.path.abspath(image), found.st_mtime_ns, found.st_size


class Record:
    """What was written into a folder, by which model and options.

    Args:
        how: the model, its depth and engine and the options: only what was written in the very same way is done.
    """

    def __init__(self, folder: Path, how: Mapping[str, Any]):
        self.folder, self.file = folder, folder / RECORD
        self.how = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:16]
        self._lines: dict[str, tuple[list, list[str]]] = {}
        self._read()

    def _read(self) -> None:
        try:
            text = self.file.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return
        for line in text.splitlines():
            try:
                how, stem, facts, files = json.loads(line)
            except ValueError:  # the last one, of a process that was killed
                continue
            if how == self.how:
                self._lines[stem] = facts, files
            elif set(files) & set(self._lines.get(stem, ([], []))[1]):  # written over since in another way
                del self._lines[stem]

    def is_done(self, stem: str, facts: Facts) -> bool:
        """Whether all files of an image are there, and it is as it was."""
        former, files = self._lines.get(stem, (None, []))
        return former == list(facts) and all((self.folder / file).is_file() for file in files)

    def add(self, stem: str, facts: Facts, files: Iterable[Path]) -> None:
        """The files of an image are written."""
        names = [file.relative_to(self.folder).as_posix() for file in files]
        with self.file.open("a", encoding="utf-8") as record:  # a line break first: the last line may be torn
            record.write("\n" + json.dumps([self.how, stem, facts, names]))
