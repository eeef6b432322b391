"""What the pipeline adds to a training run: Ray Train in the steady state, the start, memory, and a second process.

    python -m benchmarks.overheads --out benchmarks/overheads.md

Four measurements, each with the command that makes only this one (`--only loop|start|processes`):

- loop: epochs of a plain torch loop, written here, and of `pipelines.training.epochs`, alternately in one process; then
  the same inside of a worker of Ray Train, which reports and checkpoints after each epoch. The ratio is of images a
  second in the steps, the median over pairs of neighbouring epochs.
- start: from the start of `python -m pipelines.train` to the end of its first step, and what the seconds in between
  were spent on; then the memory (PSS) of each kind of process while it trains.
- processes: two gloo processes of one thread against one of two threads, at the same joint batch; and how much of the
  difference stays with one process alone, with two that exchange nothing, and with two that exchange gradients.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.machine import describe, head
from pipelines.cluster.ray_cluster import cluster
from pipelines.core.params import Params, load_params
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.storage.places import Folder
from pipelines.storage.run_store import RunStore
from pipelines.training import ray_worker
from pipelines.training.batches import make_loader
from pipelines.training.epochs import epochs
from pipelines.training.spec import TrainSpec, make_spec
from pipelines.training.state import TrainState
from unetpp import NestedUNet
from unetpp.training.loop import choose_precision, epoch_order, make_loss, make_optimizer

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent


def make_params(num_workers: int, threads: int, num_epochs: int) -> Params:
    """params.yaml as it is shipped, for synthetic images of 96x96."""
    params = load_params(ROOT / "params.yaml")
    train = {"num_workers": num_workers, "cpus_per_worker": threads, "epochs": num_epochs, "init": None}
    return params.model_copy(
        update={
            "train": params.train.model_copy(update=train),
            "registry": params.registry.model_copy(update={"live": False}),
        }
    )


# The steady state


def plain_epochs(spec: TrainSpec, num_epochs: int) -> Iterator[float]:
    """The loop that everybody writes, on the same network and batches; yields images a second of each epoch."""
    train = load_params(ROOT / "params.yaml").train
    torch.manual_seed(train.seed)
    network = NestedUNet(spec.widths).to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = make_optimizer(network, train.optimizer, 1e-3, train.momentum, train.weight_decay)
    loss, dtype = make_loss(train.loss, train.head_weights, network.depths), choose_precision(train.precision, CPU)
    split, _ = spec.open_splits()
    loader = make_loader(spec, split, CPU)
    size = spec.train.batch_size
    for epoch in range(num_epochs):
        order = epoch_order(len(split), train.seed, epoch)
        batches = loader.batches([order[at : at + size] for at in range(0, len(order), size)], epoch)
        network.train()
        began = time.monotonic()
        for image, mask in batches:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits = network(image.to(memory_format=torch.channels_last))
            total = loss(logits, mask).mean()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
        yield len(split) / (time.monotonic() - began)


def alternate(spec: TrainSpec, report) -> list[tuple[float, float]]:
    """(plain, ours) images a second of neighbouring epochs, without the first two of each."""
    torch.set_num_threads(spec.train.cpus_per_worker)
    plain, pairs = plain_epochs(spec, spec.train.epochs), []
    for state in epochs(spec, CPU):
        report(state)
        pairs.append((next(plain), state.history[-1]["images_per_s"]))
    return pairs[2:]


def alternate_in_ray(spec: TrainSpec, _run: RunStore) -> list[tuple[float, float]]:
    """The same in a worker of Ray Train."""
    import ray.train

    logging.getLogger().setLevel("WARNING")  # else every report is printed whole

    from unetpp.training.checkpoint import save_checkpoint

    def report(state: TrainState) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), state.to_dict())
            ray.train.report(state.history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))

    return alternate(spec, report)


def read_loop(prepared: Path, folder: Path, widths: list[int], num_epochs: int) -> list[str]:
    spec = make_spec(make_params(1, 1, num_epochs), widths, prepared)
    alone = alternate(spec, lambda _state: None)
    ray_worker.train_worker = alternate_in_ray  # pyright: ignore[reportAttributeAccessIssue]
    with cluster():
        in_ray: Any = ray_worker.run_on_ray(spec, "loop", RunStore(Folder(folder / "loop")))
    lines = [
        f"Steps of 8 images of 96x96, widths {', '.join(map(str, widths))}, one thread, {len(alone)} pairs of epochs:",
        "",
        "| images/s, median | plain loop | ours | ours / plain, median of pairs | quartiles of the pairs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, pairs in (("this process alone", alone), ("a worker of Ray Train", in_ray)):
        plain, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
        low, middle, high = statistics.quantiles([mine / other for other, mine in pairs], n=4)
        lines.append(f"| {name} | {plain:.1f} | {ours:.1f} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    return [*lines, ""]


# The start


class Stamps:
    """Moments that several processes write into one file."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, name: str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([name, time.time()]) + "\n")

    def read(self) -> dict[str, float]:
        """The last moment of each name: of several processes the slowest one's."""
        return dict(json.loads(line) for line in self.path.read_text().splitlines())


def stamped_train(stamps: Stamps) -> None:
    """`python -m pipelines.train` with moments written down; its arguments are in sys.argv."""
    stamps.add("torch and the stage imported")
    from pipelines import train
    from pipelines.training import in_process

    run_on_ray, whole_epochs, whole_cluster = train.run_on_ray, ray_worker.epochs, train.cluster
    train_worker = ray_worker.train_worker

    def watched(*args, **kwargs):
        first = [True]

        def watch(*_):
            if first:
                first.clear()
                stamps.add("first step")

        stamps.add("worker's training begins")
        return whole_epochs(*args[:6], **(kwargs | {"watch": watch}))

    def stamped_worker(spec, run):
        stamps.add("worker's function called")
        ray_worker.epochs = watched
        return train_worker(spec, run)

    def stamped_run(*args, **kwargs):
        stamps.add("ray.init done")
        found = run_on_ray(*args, **kwargs)
        stamps.add("fit returned")
        return found

    ray_worker.train_worker, train.run_on_ray, in_process.epochs = stamped_worker, stamped_run, watched
    train.cluster = whole_cluster
    train.main()
    stamps.add("results written, Ray ended")


def start_train(prepared: Path, folder: Path, params: Params, name: str) -> tuple[subprocess.Popen, Stamps, float]:
    import yaml

    home = folder / name
    home.mkdir()
    (home / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))
    (home / "architecture.yaml").write_text("widths: [16, 32, 64, 128, 256]\n")
    arguments = ["--prepared", str(prepared), "--architecture", "architecture.yaml", "--runs", "runs"]
    arguments += ["--out", "models", "--reports", "reports"]
    stamps = Stamps(home / "stamps")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    began = time.time()
    with open(home / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.overheads", "--stamped", str(stamps.path), *arguments],
            cwd=home,
            env=kept | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    return process, stamps, began


def read_start(prepared: Path, folder: Path, rounds: int) -> list[str]:
    lines, memory = [], {}
    for workers in (1, 2):
        spent: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds):
            params = make_params(workers, 1, 3)
            process, stamps, began = start_train(prepared, folder, params, f"start {workers} {number}")
            while process.poll() is None and not (stamps.path.exists() and "first step" in stamps.path.read_text()):
                time.sleep(0.05)
            time.sleep(1)
            memory[workers] = read_memory(process.pid)
            assert process.wait(300) == 0, (folder / f"start {workers} {number}" / "log").read_text()
            ended, found = time.time(), stamps.read()
            spent["first step"].append(found["first step"] - began)
            previous = began
            for name, moment in sorted(found.items(), key=lambda one: one[1]):
                spent[f"until: {name}"].append(moment - previous)
                previous = moment
            spent["until: the process has ended"].append(ended - previous)
        lines += [
            f"{workers} worker(s): first step after {statistics.median(spent.pop('first step')):.1f} s, median of "
            f"{rounds}; then two more epochs. Where the seconds go:",
            "",
            "| | s |",
            "| --- | ---: |",
            *(f"| {name} | {statistics.median(seconds):.1f} |" for name, seconds in spent.items()),
            "",
        ]
    lines += [
        "Memory (PSS) one second after the first step:",
        "",
        "| process | number | MiB |",
        "| --- | ---: | ---: |",
    ]
    for workers, kinds in memory.items():
        for name, sizes in sorted(kinds.items(), key=lambda one: -sum(one[1])):
            lines.append(f"| {workers} worker(s): {name} | {len(sizes)} | {sum(sizes):.0f} |")
        ours = sum(sum(sizes) for name, sizes in kinds.items() if name in ("the stage", "ray::RayTrainWorker"))
        whole = sum(map(sum, kinds.values()))
        lines.append(f"| {workers} worker(s): Ray itself, without stage and workers | | {whole - ours:.0f} |")
    return [*lines, ""]


def read_memory(pid: int) -> dict[str, list[float]]:
    """MiB of each process of a family, by what it is."""
    found: dict[str, list[float]] = defaultdict(list)
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for one in family:
        try:
            size, line = one.memory_full_info().pss / 2**20, one.cmdline()
        except psutil.Error:
            continue
        found["the stage" if one.pid == pid else _kind(line)].append(size)
    return found


def _kind(line: list[str]) -> str:
    first = line[0] if line else "gone"
    if first.startswith("ray::"):
        return first
    script = next((part for part in line[1:3] if part.endswith(".py")), first)
    return Path(script).name


# Two processes


def steps_of(_rank: int, world: int, threads: int, batch: int, widths: list[int], ddp: bool, rounds: int) -> float:
    """Seconds of a step, the median; the batch is this process's own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network: nn.Module = NestedUNet(widths).to(memory_format=torch.channels_last)  # pyright: ignore
    loss, dtype = make_loss("ce_dice", "mean", range(1, len(widths))), choose_precision("auto", CPU)
    optimizer = make_optimizer(network, "adamw", 1e-3, 0.9, 0.01)
    if ddp:
        network = nn.parallel.DistributedDataParallel(
            network, gradient_as_bucket_view=True, forward_sync_buffers=False, static_graph=False
        )
    image = torch.randn(batch, 3, 96, 96).to(memory_format=torch.channels_last)
    mask = torch.zeros(batch, 96, 96, dtype=torch.uint8)
    seconds = []
    for _ in range(rounds + 2):
        if world > 1 and not ddp:
            dist.barrier()  # they work at the same time, as they would
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = network(image)
        optimizer.zero_grad(set_to_none=True)
        loss(logits, mask).mean().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def _serve(rank: int, world: int, file: str, threads: int, batch: int, widths: list[int], ddp: bool, rounds: int, out):
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    out[rank] = steps_of(rank, world, threads, batch, widths, ddp, rounds)
    if world > 1:
        dist.destroy_process_group()


def read_processes(folder: Path, widths: list[int], batch: int, rounds: int, repeats: int) -> list[str]:
    from torch.multiprocessing import Manager, spawn

    plans = {
        "one process, two threads": (1, 2, batch, False),
        "one process, one thread, half the batch, alone": (1, 1, batch // 2, False),
        "two of these at once, exchanging nothing": (2, 1, batch // 2, False),
        "two of these with DistributedDataParallel, gloo": (2, 1, batch // 2, True),
    }
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with Manager() as manager:
        for repeat in range(repeats):
            for name, (world, threads, own, ddp) in plans.items():
                out = manager.dict()
                file = str(folder / f"group {repeat} {len(found)} {name}")
                spawn(_serve, (world, file, threads, own, widths, ddp, rounds, out), nprocs=world)
                found[name].append((max(out.values()), min(out.values())))
    seconds = {name: statistics.median(slow for slow, _ in pairs) for name, pairs in found.items()}
    apart = {name: statistics.median(slow / fast - 1 for slow, fast in pairs) for name, pairs in found.items()}
    base, *_, last = seconds.values()
    lines = [
        f"Steps of {batch} images of 96x96 in all, widths {', '.join(map(str, widths))}; the slower process counts; "
        f"median of {repeats} interleaved starts of {rounds} steps:",
        "",
        "| | ms a step | speed against the first | the slower one takes longer by |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {value * 1e3:.0f} | {base / value:.2f} | {apart[name]:.0%} |"
            for name, value in seconds.items()
        ),
        "",
        f"Two processes reach {base / last:.2f} of the images a second of one. First row to second: what two "
        "threads gain over one, at half the images. Second to third: both cores are busy and share the memory. Third "
        "to fourth: the exchange of gradients, and waiting for the slower one.",
        "",
    ]
    return lines


ABOUT_THE_START = """One worker needs neither Ray nor a process group. Of several, most goes into processes that import
Python packages on two cores at once: Ray's own helpers, the controller (which imports torch), then the workers. What
the stage leaves out on one machine: the dashboard, the watcher of preemptions, and a worker for each core ahead of time
(`RAY_prestart_worker_first_driver=0`: none of them would have our environment, and each imports Ray)."""

READINGS = {"loop": "Steady state", "start": "The start, and memory", "processes": "Two processes of one thread"}


def main() -> None:
    if sys.argv[1:2] == ["--stamped"]:
        stamps = Stamps(Path(sys.argv[2]))
        del sys.argv[1:3]
        stamped_train(stamps)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=READINGS)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=10, help="of loop")
    parser.add_argument("--rounds", type=int, default=3, help="of start and processes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    command = f"python -m benchmarks.overheads --rounds {args.rounds} --epochs {args.epochs} --images {args.images}"
    machine = describe(CPU, [torch.float32, choose_precision("auto", CPU)])
    lines = [*head("What the pipeline adds to a training run", command, machine), "`--only` measures one part.", ""]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = load_params(ROOT / "params.yaml")
        synthetic = params.ingest.synthetic.model_copy(update={"num_images": args.images, "size_px": 96})
        ingest(params.ingest.model_copy(update={"synthetic": synthetic}), folder / "raw")
        prepare(params.prepare, folder / "raw", folder / "prepared")
        for reading, title in READINGS.items():
            if args.only in (None, reading):
                lines += [f"## {title}", "", f"`python -m benchmarks.overheads --only {reading}`", ""]
                if reading == "loop":
                    lines += read_loop(folder / "prepared", folder, args.widths, args.epochs)
                elif reading == "start":
                    lines += read_start(folder / "prepared", folder, args.rounds)
                else:
                    lines += read_processes(folder, args.widths, 8, 10, args.rounds)
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
