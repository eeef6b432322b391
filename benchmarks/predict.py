"""Whole processes that predict folders of images on one core: ours with each engine, an earlier version, and the peers.

    git worktree add ../before 5d38d26
    python -m benchmarks.predict --before ../before --work /tmp/predict --out benchmarks/predict.md
    python -m benchmarks.predict --profile --work /tmp/predict --engines onnxruntime-int8 openvino-int8 --depths 1 4

The network has the classic widths; its weights are random, with norms that have seen images, which changes no speed.
Each process runs on one core with one thread. The result is the CPU time of the process and its children,
including start and files, so that other work on the machine has little effect. Contestants alternate.

`--profile` prints where the CPU-seconds of our processes for the small images go (`benchmarks.where_time_goes`).

The peers are typical loops: decode by Pillow, one image at a time, eager fp32, mask as PNG. They only run
if they can be imported.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.where_time_goes import table

WIDTHS = (32, 64, 128, 256, 512)
DEPTHS = (1, 2, 3, 4)
IMAGES = {96: 300, 512: 64}  # how many of each size a whole process has
SECONDS = 12.0  # about what a run may take: of what is slower there are fewer images, and the rest is counted on
SLOW = {"": 0.07, "L1": 0.02, "L2": 0.04, "L3": 0.07, "L4": 0.11}  # s for an image of 96 in fp32, roughly
QUICK = {"bf16": 2, "int8": 4}  # times faster
PEERS = {"smp": "SMP UnetPlusPlus (resnet34)", "monai": "MONAI BasicUNetPlusPlus"}
ENGINES = ("torch", "torch-bf16", "onnxruntime", "openvino", "openvino-bf16", "onnxruntime-int8", "openvino-int8")


def make_model(folder: Path) -> None:
    """A family of networks with its exports."""
    import torch

    from pipelines.export import write_depth
    from unetpp import NestedUNet
    from unetpp.data.scaling import standardise
    from unetpp.files import sha256
    from unetpp.models.model_file import Trained, load_model

    torch.manual_seed(0)
    network = NestedUNet(WIDTHS, 3, 1)
    with torch.no_grad():
        for _ in range(10):
            network(standardise(torch.nn.functional.interpolate(torch.rand(4, 3, 12, 12), size=(96, 96))))
    folder.mkdir(parents=True)
    Trained(network.eval(), None, {}).save(folder / "model.safetensors")
    trained, entries = load_model(folder), []
    seen = torch.nn.functional.interpolate(torch.rand(8, 3, 12, 12), size=(96, 96)).numpy()
    for depth in DEPTHS:
        (folder / "exports").mkdir(exist_ok=True)
        write_depth(trained, depth, ["onnx", "onnx-int8"], folder / f"exports/L{depth}", 20, list(seen))
        for kind, name in (("onnx", "model.onnx"), ("onnx-int8", "model-int8.onnx")):
            file = f"L{depth}/{name}"
            one = {"depth": f"L{depth}", "format": kind, "file": file, "sha256": sha256(folder / "exports" / file)}
            entries.append(one)
    listing = {"model_sha256": trained.sha256, "exports": entries}
    (folder / "exports/exports.json").write_text(json.dumps(listing))


def make_images(folder: Path) -> None:
    """PNG files of smooth colours with grain, RGB."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for size, number in IMAGES.items():
        (folder / str(size)).mkdir(parents=True)
        for index in range(number):
            coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((size, size))
            grain = rng.integers(-8, 8, (size, size, 3))
            image = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / f"{size}/{index:03}.png")


@dataclass
class Contestant:
    """A command that predicts a folder, and what was measured of it."""

    name: str
    depth: str
    command: list[str]  # before the folder of images and that of masks
    code: str | None = None  # where its code lies
    start: list[float] = field(default_factory=list)  # s, with one image of 96
    seconds: dict[int, list[tuple[int, float]]] = field(default_factory=dict)  # by size: images and s
    peak_mib: dict[int, float] = field(default_factory=dict)

    def run(self, images: Path, number: int, work: Path) -> float:
        """Seconds of the processor for the first images of a folder."""
        shutil.rmtree(work / "in", ignore_errors=True)
        shutil.rmtree(work / "out", ignore_errors=True)
        (work / "in").mkdir()
        for image in sorted(images.iterdir())[:number]:
            os.link(image, work / "in" / image.name)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": self.code or os.environ["PYTHONPATH"]}
        command = [sys.executable, *self.command]
        process = subprocess.Popen(
            [*command, "in", "--out", "out"] if "loop" not in command else [*command, "in", "out"],
            cwd=work,
            env=environment,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, self.name
        assert len(list((work / "out").glob("*.png"))) == number, self.name
        size = int(images.name)
        self.peak_mib[size] = max(self.peak_mib.get(size, 0), used.ru_maxrss / 1024)
        return used.ru_utime + used.ru_stime

    def whole(self, size: int) -> float:
        """Seconds of a process for all images of a size."""
        start = min(self.start)
        return min(start + (taken - start) / max(1, number) * IMAGES[size] for number, taken in self.seconds[size])


def contestants(before: Path, model: Path, engines: list[str], depths: list[int]) -> list[Contestant]:
    """All that is measured."""
    command = ["-m", "pipelines.cli", "predict", "--model", str(model)]
    found: list[Contestant] = []
    former = str(before.absolute())
    found += [Contestant("before", f"L{depth}", [*command, "--depth", str(depth)], former) for depth in DEPTHS]
    found.append(Contestant("classic, a loop", "L4", ["-m", "benchmarks.predict", "loop", "classic"]))
    for name, said in PEERS.items():
        module = {"smp": "segmentation_models_pytorch", "monai": "monai"}[name]
        if find_spec(module):
            found.append(Contestant(f"{said}, a loop", "", ["-m", "benchmarks.predict", "loop", name]))
    for engine in engines:
        ours = [*command, "--engine", engine, "--depth"]
        found += [Contestant(engine, f"L{depth}", [*ours, str(depth)]) for depth in depths]
    return found


def loop(name: str, images: Path, out: Path) -> None:
    """Predict as one does without a tool."""
    import torch
    from PIL import Image

    torch.manual_seed(0)
    if name == "classic":
        from tests.unetpp.network.classic import ClassicNestedUNet

        network = ClassicNestedUNet(list(WIDTHS), deep_supervision=False)
    elif name == "smp":
        import segmentation_models_pytorch  # pyright: ignore[reportMissingImports]

        network = segmentation_models_pytorch.UnetPlusPlus("resnet34", encoder_weights=None)
    else:
        from monai.networks.nets import BasicUNetPlusPlus  # pyright: ignore[reportMissingImports]

        network = BasicUNetPlusPlus(spatial_dims=2, in_channels=3, out_channels=1)
    network.eval()
    out.mkdir()
    with torch.inference_mode():
        for path in sorted(images.iterdir()):
            image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
            image = (image - image.mean((1, 2), keepdim=True)) / (image.std((1, 2), keepdim=True) + 1e-3)
            logits = network(image[None])
            logits = logits[-1] if isinstance(logits, tuple | list) else logits
            mask = (logits.sigmoid()[0, 0] >= 0.5).numpy().astype(np.uint8) * 255
            Image.fromarray(mask).save(out / path.name)


def page(found: list[Contestant], rounds: int, command: str) -> str:
    """The tables as Markdown."""
    from unetpp.engines.processor import computes_in, processor

    sets = ", ".join(name for name in ("bf16", "fp16") if computes_in(name)) or "fp32 alone"
    lines = [
        "# Folders of images on one core: whole processes",
        "",
        f"Read on {processor()} (computes in {sets}), one core of a machine that others used, best of {rounds} "
        "alternating rounds. Seconds are those of the processor. Where fewer images were run than a table says, the "
        "process for all is counted from its start and its time an image.",
        "",
        f"    {command}",
        "",
    ]
    before = {one.depth: one for one in found if one.name == "before"}
    peer = next((one for one in found if one.name.startswith("SMP")), None)
    for size, number in IMAGES.items():
        lines += [f"## {number} images of {size}x{size}", ""]
        lines += [
            "| | depth | images/s | times before | times SMP's loop | ms an image | start, s | peak MiB | run |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for one in found:
            if not one.seconds.get(size):
                continue
            whole, start = one.whole(size), min(one.start)
            same = before.get(one.depth)
            gain = f"{same.whole(size) / whole:.1f}" if same and same.seconds.get(size) else ""
            beside = f"{peer.whole(size) / whole:.1f}" if peer and peer.seconds.get(size) else ""
            cells = [one.name, one.depth, f"{number / whole:.1f}", gain, beside]
            cells += [f"{(whole - start) / number * 1000:.2f}", f"{start:.2f}", f"{one.peak_mib[size]:.0f}"]
            lines.append(f"| {' | '.join(cells)} | {one.seconds[size][0][0]} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the code of before")
    parser.add_argument("--work", type=Path, required=True, help="folder for the model, the images and masks")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", action="store_true", help="print where the time goes, and measure nothing else")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--depths", nargs="+", type=int, default=list(DEPTHS), help="of the engines")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    if not (work / "model").exists():  # in another process: a child's peak of memory begins with its parent's
        subprocess.run([sys.executable, "-m", "benchmarks.predict", "model", str(work / "model")], check=True)
    if not (work / "images").exists():
        make_images(work / "images")
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    if arguments.profile:
        model, images = work / "model", work / "images/96"
        print(table(model, images, arguments.engines, arguments.depths, arguments.rounds))
        return
    if arguments.before is None or arguments.out is None:
        parser.error("expected --before and --out, or --profile")
    found = contestants(arguments.before, work / "model", arguments.engines, arguments.depths)
    for _ in range(arguments.rounds):
        for size, most in IMAGES.items():
            starts: dict[str, float] = {}  # the depth changes little of it
            for one in found:
                if one.name not in starts:
                    starts[one.name] = one.run(work / "images/96", 1, work)
                one.start.append(starts[one.name])
                quick = QUICK.get(one.name.rpartition("-")[2], 1)
                number = int(arguments.seconds * quick / SLOW[one.depth] / (size / 96) ** 2)
                number = max(2, min(most, number))
                known = one.seconds.setdefault(size, [])
                known.append((number, one.run(work / f"images/{size}", number, work)))
                print(f"{one.name} {one.depth} {size}: {known[-1]}, start {one.start[-1]:.2f}", flush=True)
                arguments.out.write_text(
                    page(found, arguments.rounds, " ".join(["python -m benchmarks.predict", *sys.argv[1:]]))
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["loop"]:
        loop(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    elif sys.argv[1:2] == ["model"]:
        make_model(Path(sys.argv[2]))
    else:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        main()
