"""Train and measure the networks of the study: one table of results for each protocol and recipe (records.py).

    python -m studies.paper.run --data /path/to/dsb2018            # what is missing of study.yaml's runs
    python -m studies.paper.run --data /path/to/dsb2018 --networks unet unet_pp_ds --seeds 0

A result that exists is not computed again, so that the same command resumes after an interruption, on another day or
on another machine; each row says which machine it is from. A training is one plain process, on the GPU if there
is one; several of these commands may run side by side.
"""

import argparse
import itertools
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor

from benchmarks.resize import best_iou
from pipelines.core.data_sections import Prepare
from pipelines.core.files import replacing
from pipelines.core.params import Params, load_params
from pipelines.dataset.layouts import find_samples
from pipelines.dataset.loading import load_sample
from pipelines.dataset.splits import find_split, position
from pipelines.evaluation.depth_costs import describe_machine
from pipelines.evaluation.predictor import Predictor, batches
from pipelines.training.epochs import epochs as train_epochs
from pipelines.training.spec import Init, TrainSpec, make_spec
from studies.paper import records
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.manifest import Manifest, SplitFacts
from unetpp.errors import UserError
from unetpp.files import sha256
from unetpp.models.model_file import Trained
from unetpp.models.segmenter import Segmenter
from unetpp.network.profiling import count_macs, count_parameters
from unetpp.network.pruning import prune
from unetpp.scores import metrics

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def read_study() -> dict:
    """study.yaml."""
    return yaml.safe_load((FOLDER / "study.yaml").read_text(encoding="utf-8"))


def planned(study: dict, seeds: list[int]) -> Iterator[tuple[str, str, str, int, int, str]]:
    """(protocol, recipe, scale, epochs, seed, network) of every training that study.yaml asks for."""
    for run in study["runs"]:
        wanted = [seed for seed in seeds if seed in (run.get("seeds") or seeds)]
        for seed in wanted:
            for name in run["networks"] or study["networks"]:
                yield run["protocol"], run["recipe"], run["scale"], run["epochs"], seed, name


def tiles(length: int, size: int, stride: int) -> list[int]:
    """Where patches of a side begin: each stride, and one at the end, so that every pixel is in one."""
    last = max(0, length - size)
    return sorted({*range(0, last + 1, stride), last})


def prepare_protocol(data: Path, protocol: dict, params: Prepare, out: Path) -> None:
    """Write train.arrow, val.arrow, test.arrow and manifest.json of a protocol.

    The split is a function of the image, as in the prepare stage, so that all patches of an image share it.
    """
    changes = {"size": protocol["size"], "shares": type(params.shares)(**protocol["shares"])}
    settings = params.model_copy(update=changes | {"salt": protocol.get("salt", params.salt)})
    samples, problems = find_samples(data)
    if problems or not samples:
        raise UserError(f"{data}: {len(samples)} images and {len(problems)} problems; expected images/ and masks/")
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        writers = {name: SplitWriter(partial / f"{name}.arrow") for name in ("train", "val", "test")}
        counts = dict.fromkeys(writers, 0)
        for writer in writers.values():
            writer.__enter__()
        for sample in samples:
            loaded = load_sample(sample, settings)
            name, _ = find_split(position(settings.salt, sample.id), settings.shares)
            for id, part, part_mask in patches(sample.id, loaded.image, loaded.mask, protocol["tile"]):
                writers[name].add(id, loaded.kind, part, part_mask)
                counts[name] += 1
        for writer in writers.values():
            writer.__exit__(None, None, None)
        splits = {name: SplitFacts(count, sha256(partial / f"{name}.arrow")) for name, count in counts.items()}
        Manifest(size=protocol["size"], channels=params.channels, num_classes=1, splits=splits).write(partial)


def patches(id: str, image: np.ndarray, mask: np.ndarray, tile: dict | None):
    """(id, image, mask) of the whole, or of each patch that lies in it; a smaller image is padded by zeros."""
    if tile is None:
        yield id, image, mask
        return
    size, stride = tile["size_px"], tile["stride_px"]
    short = [max(0, size - side) for side in mask.shape]
    image = np.pad(image, ((0, short[0]), (0, short[1]), (0, 0)))
    mask = np.pad(mask, ((0, short[0]), (0, short[1])))
    for y, x in itertools.product(*(tiles(side, size, stride) for side in mask.shape)):
        yield f"{id}@{y},{x}", image[y : y + size, x : x + size].copy(), mask[y : y + size, x : x + size].copy()


def network_of(study: dict, name: str, scale: str) -> tuple[list[int], dict]:
    """Widths, and the keys of section `model`."""
    spec = study["networks"][name]
    widths = study["wide" if spec.get("wide") else "widths"][scale]
    depth = spec.get("depth") or len(widths) - 1
    return widths[: depth + 1], {key: spec[key] for key in ("skips", "deep_supervision")}


def params_of(study: dict, recipe: str, epochs: int, model: dict, seed: int, device: torch.device) -> Params:
    """params.yaml with what the recipe, the network and the machine change."""
    values = load_params(ROOT / "params.yaml").model_dump(by_alias=True, mode="json")
    changes = study["recipes"][recipe]
    values["train"] |= changes.get("train", {}) | {
        "epochs": epochs,
        "seed": seed,
        "num_workers": 1,
        "use_gpu": device.type == "cuda",
        "cpus_per_worker": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
    }
    values["augment"] |= changes.get("augment", {})
    values["model"] |= model
    return Params.model_validate(values)


def draw_as_torch(spec: TrainSpec, out: Path) -> Init:
    """Weights as torch's layers draw them, which public code begins with, at `out`.

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


def rim_share(split: Split) -> float:
    """The share of the foreground's pixels that touch background, mean over the images that have foreground.

    How much of the IoU the rims of the objects decide, where annotators, too, differ by a pixel.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    shares = []
    for index in range(len(split)):
        mask = split[index][1].astype(np.uint8)
        if mask.any():
            shares.append(1 - cv2.erode(mask, cross, borderValue=1).sum() / mask.sum())
    return float(np.mean(shares))


def describe_test(split: Split) -> tuple[list[str], list[float]]:
    """Of each image its kind, and the IoU of the best of its thresholds: of its grey, from either side, by its mask.

    A yardstick without a network, and no bound for one: it is chosen by the answer.
    """
    best = []
    for index in range(len(split)):
        image, mask = split[index][0].mean(axis=2, dtype=np.float32), split[index][1] > 0
        best.append(max(best_iou(image, mask), best_iou(-image, mask)) if mask.any() else 1.0)
    return list(split.kinds), [round(one, 5) for one in best]


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
    """Train to the end of the schedule, and score every depth and the mean of the heads on test.

    The weights are those of the last epoch (or their moving average): nothing is chosen by any score.
    """
    began = time.monotonic()
    (state,) = deque(train_epochs(spec, device), maxlen=1)  # the last
    trained_s = time.monotonic() - began
    network = spec.build_network()
    network.load_state_dict(state.ema or state.weights or {})
    split = Split(spec.prepared / "test.arrow")
    counts = count_pixels(Predictor(Trained(network, None), device), split, 16)
    names = [f"L{depth}" for depth in network.depths]
    depths = {name: metrics.scores(each) for name, each in counts.items()}
    example = torch.rand(1, network.in_channels, 96, 96)
    for name, depth in zip(names, network.depths, strict=True):
        pruned = Segmenter(prune(network, depth)).eval()
        depths[name] |= {"parameters": count_parameters(pruned), "macs": count_macs(pruned, example)}
    return {
        "depths": depths,
        "images": {
            name: [round(one, 5) for one in metrics.per_image_iou(each).tolist()] for name, each in counts.items()
        },
        "patches": [len(list(of_image)) for _, of_image in itertools.groupby(split.ids, lambda id: id.split("@")[0])],
        "rim_share": round(rim_share(split), 4),
        "test_sha256": sha256(spec.prepared / "test.arrow"),
        "train_loss": round(state.history[-1]["train_loss"], 5),
        "epochs": len(state.history),
        "trained_s": round(trained_s, 1),
        "machine": describe_machine(device),
    }


def taken(claim: Path) -> bool:
    """Whether another command of this machine, which still runs, is at work on a result."""
    try:
        os.kill(int(claim.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def main() -> None:
    study = read_study()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--work", type=Path, default=FOLDER / "data", help="folder of the prepared protocols")
    for name, legal in (
        ("protocols", study["protocols"]),
        ("recipes", study["recipes"]),
        ("scales", study["widths"]),
        ("networks", study["networks"]),
    ):
        parser.add_argument(f"--{name}", nargs="+", choices=list(legal), default=list(legal), help="of these alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=study["seeds"])
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    params = load_params(ROOT / "params.yaml")
    for protocol, recipe, scale, epochs, seed, name in planned(study, arguments.seeds):
        wanted = (arguments.protocols, arguments.recipes, arguments.scales, arguments.networks)
        if any(one not in some for one, some in zip((protocol, recipe, scale, name), wanted, strict=True)):
            continue
        run = records.Run(scale, name, seed)
        claim = records.table_of(protocol, recipe).with_name(f"{recipe}-{scale}-{name}-{seed}.running")
        if run in records.read(protocol, recipe) or taken(claim):
            continue
        prepared = arguments.work / protocol
        if not (prepared / "manifest.json").exists():
            prepare_protocol(arguments.data, study["protocols"][protocol], params.prepare, prepared)
        if records.read_test(protocol) is None:
            records.write_test(protocol, *describe_test(Split(prepared / "test.arrow")))
        widths, model = network_of(study, name, scale)
        spec = make_spec(params_of(study, recipe, epochs, model, seed, device), widths, prepared)
        if study["recipes"][recipe].get("init") == "torch":
            spec = replace(spec, init=draw_as_torch(spec, prepared / f"init-{scale}-{name}-{seed}.pt"))
        claim.parent.mkdir(parents=True, exist_ok=True)
        claim.write_text(str(os.getpid()))
        try:
            found = measure(spec, device)
            records.add(protocol, recipe, run, found | {"params": spec.sections, "widths": widths})
        finally:
            claim.unlink()
        ious = "  ".join(f"{depth} {row['iou_image']:.4f}" for depth, row in found["depths"].items())
        print(f"{protocol} {recipe} {scale} {name}-{seed}  {ious}  {found['trained_s']:.0f} s", flush=True)


if __name__ == "__main__":
    from pipelines.core.command import run_command

    run_command(main)
