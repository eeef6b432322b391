"""Time, memory and size of the data report for any number of samples, from facts that were never images.

    python benchmarks/data_report.py --num 100000

A first process makes the facts and Arrow files of images of 16 x 16 px; a second is measured.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipelines.dataset.fingerprint import SPLITS, read_fingerprint, write_fingerprint
from pipelines.pages.data_page import build_page
from pipelines.planning.advice import advise
from tests.pipelines.dataset.made import make_samples
from unetpp.data.arrow_split import SplitWriter
from unetpp.data.manifest import Manifest, SplitFacts

DIFFERENT = 2000  # samples; the rest repeat them under other ids


def make(folder: Path, num: int) -> None:
    """samples.csv, manifest and Arrow files, as stage prepare would leave them."""
    samples = make_samples(DIFFERENT)
    columns = {name: np.resize(values, num) for name, values in samples.items()}
    columns["id"] = np.array([f"sample_{number:07}" for number in range(num)], dtype=object)
    with (folder / "samples.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    image, mask = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 1
    splits = {}
    for split in SPLITS:
        with SplitWriter(folder / f"{split}.arrow") as arrow:
            for index in np.flatnonzero(columns["split"] == split):
                arrow.add(columns["id"][index], columns["kind"][index], image, mask)
        splits[split] = SplitFacts(int(np.count_nonzero(columns["split"] == split)), "")
    Manifest(size=96, channels=3, num_classes=1, splits=splits).write(folder)


def measure(folder: Path) -> None:
    """Print what a process needs that does nothing else."""
    before, times = _peak_mib(), [time.perf_counter()]
    write_fingerprint(folder, advise)
    times.append(time.perf_counter())
    page = build_page(read_fingerprint(folder), folder)
    times.append(time.perf_counter())
    print(f"fingerprint {times[1] - times[0]:.1f} s, page {times[2] - times[1]:.1f} s")
    print(f"memory beyond the imports {_peak_mib() - before:.0f} MiB")
    for name in ("samples.csv", "fingerprint.json"):
        print(f"{name} {(folder / name).stat().st_size / 1000:,.0f} kB")
    print(f"the page {len(page.encode()) / 1000:,.0f} kB")


def _peak_mib() -> float:
    # Not getrusage, whose peak a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="measure what lies here already")
    arguments = parser.parse_args()
    if arguments.folder:
        return measure(arguments.folder)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), arguments.num)
        subprocess.run([sys.executable, __file__, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
