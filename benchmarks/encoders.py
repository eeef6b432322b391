"""UNet++ on an encoder of timm: ours beside segmentation_models.pytorch's UnetPlusPlus of the same encoder.

    python -m benchmarks.encoders --data ../shared/data --set pets --encoder tf_efficientnet_lite0 \\
        --weights lite0.safetensors --epochs 30 --out benchmarks/encoders.md

Both learn from the same weights of the encoder, batches, augmentation, loss and schedule, by the same step under the
same autocast. The peer has one head; ours has one a depth, each of which is scored as the network pruned to it. The
difference of IoU is of the same test images, with a 95 % interval by bootstrap. Steps are timed in interleaved rounds,
after the training; seconds a GMAC make networks of unequal size comparable. Test images alone are scored, after the
last epoch: nothing is chosen by them. The peer is left out, and named, where it cannot be imported.
"""

import argparse
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.epochs import SETS, read_set
from unetpp import NestedUNet
from unetpp.data.crops import Crops
from unetpp.data.device_augment import RawSamples, augment_batches
from unetpp.data.loader import Loader
from unetpp.data.scaling import standardise
from unetpp.network.encoders import load_weights, read_weights
from unetpp.network.masks import to_mask, to_probs
from unetpp.network.profiling import count_macs, count_parameters
from unetpp.network.pruning import prune
from unetpp.scores.metrics import confusion, per_image_iou
from unetpp.training.batch_norm import reset_statistics
from unetpp.training.loop import (
    choose_precision,
    cut_epoch,
    encoder_share,
    epoch_order,
    make_loss,
    make_optimizer,
    plain_batches,
    schedule,
    train_steps,
)
from unetpp.training.pairs import Pairs
from unetpp.training.step import TrainStep

OURS, PEER = "ours", "segmentation_models.pytorch UnetPlusPlus"


class Peer(nn.Module):
    """The peer's network, called as ours is: a tuple of one head's logits.

    Args:
        weights: of the encoder, by timm's names.
    """

    depths = (1,)

    def __init__(self, encoder: str, widths: list[int], num_classes: int, weights: dict[str, Tensor] | None):
        super().__init__()
        import segmentation_models_pytorch

        depth = len(widths) - 1
        self.network: Any = segmentation_models_pytorch.UnetPlusPlus(
            f"tu-{encoder}",
            encoder_depth=depth,
            encoder_weights=None,
            decoder_channels=widths[:depth][::-1],
            classes=num_classes,
        )
        self.pyramid = self.network.encoder  # its parameters are a group of their own, as ours are
        if weights:
            own = self.pyramid.model.state_dict()
            self.pyramid.model.load_state_dict({key: weights[key] for key in own})

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.network(image),)


def make_networks(args: argparse.Namespace, num_classes: int) -> tuple[dict[str, nn.Module], list[str]]:
    """By name; and which peers are missing, and why."""
    weights = None
    torch.manual_seed(args.seed)
    ours = NestedUNet(args.widths, 3, num_classes, encoder=args.encoder)
    if args.weights and ours.pyramid and ours.pyramid.model:
        weights, first = read_weights(args.weights), next(iter(ours.pyramid.model.state_dict()))
        load_weights(ours.pyramid, weights, str(args.weights))
        prefix = next(key.removesuffix(first) for key in weights if key.endswith(first))
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    try:
        torch.manual_seed(args.seed)
        return {OURS: ours, PEER: Peer(args.encoder, args.widths, num_classes, weights)}, []
    except Exception as error:
        return {OURS: ours}, [f"{PEER}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"]


def make_step(network: nn.Module, args: argparse.Namespace, steps: int, device: torch.device) -> TrainStep:
    network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    depths: Any = network.depths
    loss = make_loss("ce_dice", "mean", depths)
    optimizer = make_optimizer(network, "adamw", args.learning_rate, 0.9, 1e-4)
    dtype = choose_precision(args.precision, device)
    return TrainStep(network, optimizer, loss, device, dtype, encoder_share=encoder_share(args.encoder_lr, steps))


def train(name: str, network: nn.Module, pairs: Pairs, args: argparse.Namespace, device: torch.device) -> TrainStep:
    """All epochs, over the same batches whatever the network."""
    limits: dict[str, Any] = {"flips": "all" if args.set == "dsb2018" else "horizontal", "quarter_turns": False}
    limits |= {"brightness": 0.2, "hue": 10, "channels": 3}
    samples = RawSamples(pairs, Crops(None, 0.0, None), args.seed, **limits)
    loader, sizes = Loader(samples), cut_epoch(len(pairs), args.batch_size)
    step = make_step(network, args, args.frozen * len(sizes), device)
    rate = schedule(args.learning_rate, 2 * len(sizes), args.epochs * len(sizes))
    for epoch in range(args.epochs):
        began, losses = time.monotonic(), torch.zeros(2, dtype=torch.float64, device=device)
        shards = [one.tolist() for one in torch.tensor(epoch_order(len(pairs), args.seed, epoch)).split(sizes)]
        if name == OURS:  # the peer keeps its moving averages
            reset_statistics(network)
        for sums in train_steps(step, augment_batches(loader.batches(shards, epoch), device), rate, epoch * len(sizes)):
            losses += sums
        seconds = time.monotonic() - began
        print(f"{name}: epoch {epoch + 1}, loss {(losses[0] / losses[1]).item():.4f}, {seconds:.0f} s", flush=True)
    return step


@torch.inference_mode()
def score(network: nn.Module, pairs: Pairs, num_classes: int, batch_size: int, device: torch.device) -> np.ndarray:
    """IoU per image of each head: (num_heads, images)."""
    network.eval()
    found = []
    for image, mask in plain_batches(pairs, range(len(pairs)), batch_size):
        logits = network(standardise(image.to(device)))
        masks = (to_mask(to_probs(one.float(), one.shape[1]), one.shape[1]).cpu() for one in logits)
        found.append(torch.stack([per_image_iou(confusion(one, mask, num_classes)) for one in masks]))
    return torch.cat(found, dim=1).numpy()


def difference(ours: np.ndarray, peer: np.ndarray) -> str:
    """The mean difference and its 95 % interval over the images."""
    each, rng = ours - peer, np.random.default_rng(0)
    means = each[rng.integers(len(each), size=(10_000, len(each)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{each.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def time_steps(steps: dict[str, TrainStep], args: argparse.Namespace, num_classes: int) -> dict[str, float]:
    """Median seconds of a step of each, in interleaved rounds; the first is not counted."""
    image = torch.randn(args.batch_size, 3, args.size, args.size)
    mask = torch.randint(0, max(2, num_classes), (args.batch_size, args.size, args.size), dtype=torch.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds + 1):
        for name, step in steps.items():
            step.network.train()
            began = time.perf_counter()
            step(image, mask, len(mask), 0.0, 0, 0)
            step.look()  # waits for a GPU
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with pets, camvid or dsb2018")
    parser.add_argument("--set", choices=SETS, default="pets")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", type=Path, help="of the encoder; without, both are drawn")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256, 256])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--encoder-lr", type=float, default=0.3)
    parser.add_argument("--frozen", type=int, default=1, help="epochs")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load, num_classes = os.getloadavg()[0], SETS[args.set]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = read_set(args.data, args.set, args.size)
    networks, missing = make_networks(args, num_classes)
    ours: Any = networks[OURS]
    learnt, test = (Pairs(data[split], ours, split) for split in ("train", "test"))
    steps = {name: train(name, one, learnt, args, device) for name, one in networks.items()}
    scores = {name: score(one, test, num_classes, args.batch_size, device) for name, one in networks.items()}
    seconds = time_steps(steps, args, num_classes)
    example = torch.randn(1, 3, args.size, args.size, device=device)
    parts: dict[str, tuple[nn.Module, np.ndarray]] = {
        f"{OURS}, L{depth}": (prune(ours, depth), scores[OURS][depth - 1]) for depth in ours.depths
    }
    if PEER in networks:
        parts[PEER] = networks[PEER], scores[PEER][-1]
    lines = [
        f"# UNet++ on {args.encoder}: ours beside the peer",
        "",
        f"{args.set}, {len(learnt)} training and {len(test)} test images of {args.size}x{args.size} px, {args.epochs} "
        f"epochs, encoder {'from ' + args.weights.name if args.weights else 'drawn'}, widths "
        f"{' '.join(map(str, args.widths))}, seed {args.seed}. Read on {platform.machine()}, "
        f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}, load average "
        f"{load:.1f} before the start; IoU per image on test.",
        "",
        "| network | IoU | less the peer's, 95 % interval | parameters | GMACs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (network, each) in parts.items():
        beside = difference(each, scores[PEER][-1]) if PEER in scores and name != PEER else ""
        macs = count_macs(network.eval(), example) / 1e9
        size = f"{count_parameters(network) / 1e6:.2f} M"
        lines.append(f"| {name} | {each.mean():.4f} | {beside} | {size} | {macs:.3f} |")
    lines += ["", "| step | seconds | GMACs of a pass | seconds a GMAC |", "| --- | --- | --- | --- |"]
    for name, took in seconds.items():
        macs = args.batch_size * count_macs(networks[name].eval(), example) / 1e9
        lines.append(f"| {name} | {took:.3f} | {macs:.2f} | {took / macs:.4f} |")
    text = "\n".join([*lines, "", *(f"Not measured: {one}." for one in missing)]) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
