"""A million images through `unetpp predict s3://... --out s3://... --ray`, on paper: from rates measured here.

    python -m benchmarks.million --out docs/scaling.md        (writes the section "A million images, in numbers")

Measured: CPU-seconds of one thread for an image, with decoding and writing; the same without a network, which is what a
GPU needs of its host; and what a read and a write cost a client of an S3 store (moto on loopback, in a separate
process whose time is not counted). CPU seconds instead of elapsed time, because others may use the machine.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.core.sections.ingest import S3
from pipelines.evaluation.depth_costs import describe_machine
from pipelines.prediction.flow import write_all
from pipelines.prediction.outputs import Outputs
from pipelines.storage.s3 import Store
from tests.servers import Moto
from unetpp import NestedUNet
from unetpp.inference.predictor import Predictor
from unetpp.models.about import About

HEADING = "## A million images, in numbers"
WIDTHS, IMAGES = (32, 64, 128, 256, 512), 10**6
CORES = (16, 64, 256, 1024)
GET, PUT = 0.0004, 0.005  # US$ for 1000, S3 Standard in us-east-1; a listing of 1000 names costs what a PUT does
SLOWEST_S = 3500  # writes a second that S3 promises for a prefix; reads are 5500


class Nothing:
    """An engine that costs nothing."""

    name, takes_parts = "none", True

    def __init__(self, about: About):
        self.about = about

    def __call__(self, images: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray:  # noqa: ARG002
        return images[:, :1]


def cpu_s(work: Callable[[], object]) -> float:
    """CPU-seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def per_image(predictor: Predictor, size: int, count: int, folder: Path) -> float:
    """CPU-seconds of an image from file to file."""
    images, random = {}, np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{size}-{index}.png"
        pixels = random.normal(120, 12, (size, size, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        images[path] = path.stem
    run = lambda: list(write_all(predictor, images, folder / "out", Outputs()))  # noqa: E731
    run()
    return min(cpu_s(run) for _ in range(2)) / count


def per_request(folder: Path, count: int = 200, size: int = 20_000) -> tuple[float, float]:
    """CPU-seconds of a read and of a write of an object of so many bytes."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    moto = Moto(folder / "moto.log")
    try:
        s3 = S3(
            endpoint=moto.url,
            region="us-east-1",
            profile=None,
            anonymous=False,
            requester_pays=False,
            checksums="when_supported",
        )
        store = Store(s3, "s3://million", 16)
        store._client.create_bucket(Bucket="million")
        write = cpu_s(lambda: [store.write(f"{index}.png", os.urandom(size)) for index in range(count)])
        there = list(store.list())
        read = cpu_s(lambda: [b"".join(store.read(one, 0, one.size)[1]) for one in there])
        return read / count, write / count
    finally:
        moto.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the page to write; without it the text is printed")
    args = parser.parse_args()
    network = NestedUNet(WIDTHS).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        read, write = per_request(folder)
        rows, host = {}, {}
        for size, count in ((96, 28), (512, 3)):
            host[size] = per_image(Predictor(Nothing(Predictor(network, 1).about)), size, count, folder)
            for depth in (1, 4):
                rows[size, depth] = per_image(Predictor(network, depth), size, count, folder)
    said = {key: str(value) for key, value in describe_machine(torch.device("cpu")).items()}
    text = [
        HEADING,
        "",
        f"`python -m benchmarks.million --out docs/scaling.md`: {said['processor']}, torch {said['torch'][:6]}.",
        "",
        f"CPU-ms of an image, widths {', '.join(map(str, WIDTHS))}, engine torch in fp32, one thread, PNG to PNG,",
        f"at a load of {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores; a higher load raises CPU-seconds, too. Of",
        f"the client of a store: {read * 1000:.1f} ms for a read, {write * 1000:.1f} ms for a write.",
        "",
        "| size | depth | network, decoding, writing | with S3 | images/s of a core | "
        + " | ".join(f"a million on {cores} cores" for cores in CORES)
        + " |",
        "| ---: | --- | ---: | ---: | ---: | " + " | ".join("---:" for _ in CORES) + " |",
    ]
    for (size, depth), own in {**{(size, 0): taken for size, taken in host.items()}, **rows}.items():
        whole = own + read + write
        each = [hours(IMAGES * whole / cores, IMAGES) for cores in CORES]
        label = f"L{depth}" if depth else "no network"
        cells = [str(size), label, f"{own * 1000:.1f} ms", f"{whole * 1000:.1f} ms", rate(1 / whole), *each]
        text.append(f"| {' | '.join(cells)} |")
    text += [
        "",
        f"`*` bound by the store: {SLOWEST_S} writes a second of a prefix are {hours(IMAGES / SLOWEST_S)} a million.",
        f"Requests of a million images with one mask each: {IMAGES:,} reads (${IMAGES * GET / 1000:.2f}), {IMAGES:,}",
        f"writes (${IMAGES * PUT / 1000:.2f}), 1,000 listings (${PUT:.3f}), and as many of the outputs to continue; by",
        f"dollars for 1,000 of {GET} and {PUT} (S3 Standard, us-east-1; look yours up).",
        "",
    ]
    if args.out is None:
        print("\n".join(text))
        return
    page = args.out.read_text()
    before, after = page[: page.index(HEADING)], page[page.index(HEADING) :]
    args.out.write_text(before + "\n".join(text) + after[after.index("\n## ") :])


def rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def hours(seconds: float, images: int = 0) -> str:
    """A duration; a `*` where the store bounds it."""
    least = images / SLOWEST_S
    star = " *" if seconds < least else ""
    seconds = max(seconds, least)
    return (f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min") + star


if __name__ == "__main__":
    main()
