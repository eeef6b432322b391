"""Time and memory of the search for near-duplicates on noise images, of which a hundred occur twice, transformed.

python -m benchmarks.near_duplicates 100000
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.machine import describe
from pipelines.dataset.near_duplicates import SIDE, Looks, find_duplicates, hash_turned, turned

COPIES = 100


def make_looks(number: int, folder: Path) -> Looks:
    """Looks of smooth noise; the last hundred are copies of the first."""
    rng, looks = np.random.default_rng(0), Looks(number, folder)
    coarse = rng.normal(size=(number, 8, 8)).astype(np.float32)
    coarse[-COPIES:] = coarse[:COPIES]
    for index, one in enumerate(coarse):
        small = cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        if index >= number - COPIES:
            small = np.ascontiguousarray(turned(small)[index % 8])
        small = np.rint(small * (127 / np.abs(small).max())).astype(np.int8)
        looks.hashes[index], looks.small[index] = hash_turned(small), small.ravel()
    return looks


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    number = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        looks = make_looks(number, Path(folder))
    before, wall_s, cpu_s = peak_mib(), time.perf_counter(), time.process_time()
    found = find_duplicates(looks, distance=6, correlation=0.85)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    assert {pair[:2] for pair in found} >= {(n, number - COPIES + n) for n in range(COPIES)}
    print(
        f"{number} pictures, {len(found)} pairs: {cpu_s:.1f} s of processor time ({wall_s:.1f} s), "
        f"peak {peak_mib()} MiB, {before} MiB before. {describe()}"
    )


if __name__ == "__main__":
    main()
