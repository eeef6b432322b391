"""Decoded samples that wait in a file until their split is known."""

from pathlib import Path

import numpy as np


class Spool:
    """`put` in any order, `take` in any other; the file is deleted at the end. One sample at a time is in memory."""

    def __init__(self, path: Path):
        self.path = path
        self._begins: dict[int, int] = {}

    def __enter__(self):
        self._file = self.path.open("w+b")
        return self

    def __exit__(self, *_):
        self._file.close()
        self.path.unlink()

    def put(self, index: int, *arrays: np.ndarray) -> None:
        """Append the arrays of a sample."""
        self._begins[index] = self._file.seek(0, 2)
        for array in arrays:
            np.save(self._file, array, allow_pickle=False)

    def take(self, index: int, num_arrays: int) -> list[np.ndarray]:
        """The arrays of a sample as they were put."""
        self._file.seek(self._begins[index])
        return [np.load(self._file, allow_pickle=False) for _ in range(num_arrays)]
