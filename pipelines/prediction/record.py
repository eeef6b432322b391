"""Which images of an output folder are done: a hidden file with one line of JSON per image."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RECORD = ".unetpp-predicted"
Facts = tuple[str, int, int]  # of an image: path, modification time (ns), size in bytes


def facts_of(image: Path) -> Facts:
    """The facts by which an unchanged image is recognised.

    Raises:
        OSError: the image does not exist.
    """
    found = image.stat()
    return os.path.abspath(image), found.st_mtime_ns, found.st_size


class Record:
    """Which images were written into a folder, with which model and options.

    Args:
        how: the model, its depth and engine, and the options; an image counts as done only if these are the same.
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
            except ValueError:  # an incomplete line of a process that was killed
                continue
            if how == self.how:
                self._lines[stem] = facts, files
            elif set(files) & set(self._lines.get(stem, ([], []))[1]):  # since overwritten with other options
                del self._lines[stem]

    def is_done(self, stem: str, facts: Facts) -> bool:
        """Whether the image is unchanged and all of its output files exist."""
        former, files = self._lines.get(stem, (None, []))
        return former == list(facts) and all((self.folder / file).is_file() for file in files)

    def begin(self, stem: str, files: Iterable[Path]) -> None:
        """Record that the output files of an image, if there are any, are about to be replaced."""
        if there := [file for file in files if file.is_file()]:
            self.add(stem, None, there)

    def add(self, stem: str, facts: Facts | None, files: Iterable[Path]) -> None:
        """Record that the output files of an image are written."""
        names = [file.relative_to(self.folder).as_posix() for file in files]
        with self.file.open("a", encoding="utf-8") as record:  # a line break first: the last line may be incomplete
            record.write("\n" + json.dumps([self.how, stem, facts, names]))
