"""Images larger than memory: the peak of memory, and what a pixel of the answer costs by the side of the tiles.

    python -m benchmarks.windows memory [--side 20000] [--high 3000] [--widths 32 64] [--file SUFFIX] [--whole]
        [--model FOLDER --engine NAME --depth 4]
    python -m benchmarks.windows tiles [--widths 32 64 128 256 512] [--rounds 3]

`memory` makes a picture of side x side RGB (a TIFF in tiles, or a PNG), and a process of its own that reads it,
predicts it with random weights and writes its mask; memory is above that of the process once all is imported and the
network is there (VmHWM). `--whole` decodes and predicts it as one array; without `--widths` there is no network, and
half of the first channel is the answer: what all the rest takes. `--model` takes an engine of a network and its exports
instead; `python -m benchmarks.predict model FOLDER` makes one of the classic widths. `tiles` is CPU-seconds of one
thread, the sides in turn; useful is what is left of a tile without what overlaps.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from unetpp.engines.engine import Engine
from unetpp.images.row_writers import png_rows, tiff_rows
from unetpp.models.about import About

SIDES = (192, 256, 384, 512, 608, 768, 1024)


class Half:
    """Half of the first channel, as an engine of depth 1."""

    name, takes_parts, about = "half", True, About({"widths": [1, 1]}, None)

    def __call__(self, images: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray:
        assert statistics is not None or len(images)
        return images[:, :1] / 2


def make_engine(widths: list[int] | None) -> Engine:
    """The deepest network of these widths, in eager mode."""
    if not widths:
        return Half()
    import torch

    from unetpp import NestedUNet, Segmenter
    from unetpp.engines.torch_engine import TorchEngine

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = NestedUNet(widths, upsampling="bilinear", deep_supervision=False).eval()
    engine = TorchEngine(Segmenter(network), About(network.config(), None))
    engine(np.zeros((1, 3, 32, 32), np.float32))
    return engine


def open_engine(model: str, name: str, depth: int) -> Engine:
    """Of a network in a file, ready: it has computed a small image."""
    from unetpp.engines import family

    engine = family.open_engine(family.find_family(model, Path(model) / "exports"), depth, name, threads=1)
    engine(np.zeros((1, 3, 32, 32), np.float32), np.array([[[0, 1]] * 3], np.float32))
    return engine


def make_picture(path: Path, side: int, high: int) -> None:
    """RGB noise that repeats, written in rows."""
    rows = np.tile(np.random.default_rng(0).integers(0, 64, (500, 500, 3), np.uint8), (1, -(-side // 500), 1))[:, :side]
    write_rows = png_rows if path.suffix == ".png" else tiff_rows
    with write_rows(path, (high, side, 3), np.dtype(np.uint8)) as write:
        for top in range(0, high, 500):
            write(rows[: min(500, high - top)])


def peak_mib() -> float:
    """Of this process, without what it was before it was this program."""
    return int(Path("/proc/self/status").read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 1024


def predict(path: Path, engine: Engine, is_whole: bool) -> None:
    """One line: what the process took."""
    from unetpp.images.decode import decode_image
    from unetpp.images.pictures import Limits, encode_png
    from unetpp.images.windows import open_windows
    from unetpp.inference.tiles import predict_image, to_mask
    from unetpp.inference.windows import predict_strips

    limits = Limits(max_pixels=2**31)
    import imagecodecs
    import tifffile

    assert imagecodecs
    assert tifffile
    before, began = peak_mib(), time.process_time()
    if is_whole:
        path.with_suffix(".mask.png").write_bytes(
            encode_png(to_mask(predict_image(engine, decode_image(path, 3, limits=limits))[None], 1)[0])
        )
    else:
        with (
            open_windows(path, 3, limits) as image,
            tiff_rows(path.with_suffix(".mask.tif"), image.shape[:2], np.dtype(np.uint8), image.tags) as write,
        ):
            for _, probs in predict_strips(engine, image):
                write(to_mask(probs[None], 1)[0])
    print(f"{peak_mib() - before:.0f} MiB above {before:.0f} MiB, {time.process_time() - began:.0f} s of a core")


def measure_tiles(widths: list[int], rounds: int) -> None:
    """A line for each depth and side."""
    from unetpp.inference.tiles import tile_sides

    print("| depth | overlap, px | side | us a pixel | us a useful pixel |\n| --- | --- | --- | --- | --- |")
    statistics = np.array([[[0.5, 0.3]] * 3], np.float32)
    for depth in range(1, len(widths)):
        engine = make_engine(widths[: depth + 1])
        _, halo, fade = tile_sides(engine, 1)
        times: dict[int, list[float]] = {side: [] for side in SIDES if side > 4 * halo}
        for _ in range(rounds):
            for side, each in times.items():
                image = np.random.default_rng(0).random((1, 3, side, side), np.float32)
                began = time.process_time()
                engine(image, statistics)
                each.append(time.process_time() - began)
        for side, each in times.items():
            us, useful = min(each) * 1e6, side - 2 * halo - fade
            print(f"| L{depth} | {2 * halo + fade} | {side} | {us / side**2:.2f} | {us / useful**2:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "tiles", "predict"))
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--high", type=int, help="rows, by default as many as columns")
    parser.add_argument("--model", help="folder of a network with its exports")
    parser.add_argument("--engine", default="torch", help="of --model")
    parser.add_argument("--depth", type=int, default=4, help="of --model")
    parser.add_argument("--widths", type=int, nargs="+", default=None)
    parser.add_argument("--file", default=".tif")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "tiles":
        return measure_tiles(arguments.widths or [32, 64, 128, 256, 512], arguments.rounds)
    if arguments.what == "predict":
        model = (arguments.model, arguments.engine, arguments.depth)
        engine = open_engine(*model) if arguments.model else make_engine(arguments.widths)
        return predict(Path(arguments.file), engine, arguments.whole)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{arguments.file}"
        make_picture(path, arguments.side, arguments.high or arguments.side)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.windows", "predict", *sys.argv[2:], "--file", path], check=True
        )


if __name__ == "__main__":
    main()
