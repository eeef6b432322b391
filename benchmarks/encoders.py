"""UNet++ on an encoder of timm: ours beside segmentation_models.pytorch's UnetPlusPlus of the same encoder.

    python -m benchmarks.encoders --data ../shared/data --weights lite0.safetensors --out benchmarks/encoders.md

Both learn from the same weights of the encoder, batches, augmentation, loss and schedule, by the same step under the
same autocast. The peer has one head; ours has one a depth, each of which is scored as the network pruned to it.
`--widths` are those of both by default, `--equal` those by which ours has about the peer's operations and is trained;
`--constants` trains ours also on images that ImageNet's mean and deviation standardise, in place of each one's own.
Differences of IoU are of the same test images, mean over the seeds, with a 95 % interval by bootstrap over the images.
Steps are timed first, in interleaved rounds, in CPU-seconds. Only test images are scored, after the last epoch.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.epochs import SETS, read_set
from benchmarks.machine import SHORT, describe, head, timed
from unetpp import NestedUNet
from unetpp.data.crops import Crops
from unetpp.data.device_augment import RawSamples, augment_batch
from unetpp.data.loader import Loader
from unetpp.data.scaling import STD_FLOOR, standardise
from unetpp.network.encoders import import_timm, load_weights, read_weights
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

PEER = "segmentation_models.pytorch UnetPlusPlus"
CONSTANTS = ", ImageNet's constants"  # ends the name of a network whose images they standardise
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]  # mean and deviation
Scores = dict[str, list[np.ndarray]]  # by network, of each seed: IoU (heads, images)


class Peer(nn.Module):
    """The peer's network, called as ours is: a tuple of one head's logits.

    Args:
        weights: of the encoder, by timm's names.
    """

    depths = (1,)

    def __init__(self, encoder: str, widths: list[int], num_classes: int, weights: dict[str, Tensor] | None):
        super().__init__()
        import_timm()  # beside any torchvision
        import segmentation_models_pytorch  # pyright: ignore[reportMissingImports]

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


def make_ours(args: argparse.Namespace, widths: list[int], num_classes: int, seed: int) -> NestedUNet:
    torch.manual_seed(seed)
    network = NestedUNet(widths, 3, num_classes, encoder=args.encoder)
    if args.weights and network.pyramid:
        load_weights(network.pyramid, read_weights(args.weights), str(args.weights))
    return network


def make_peer(args: argparse.Namespace, num_classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Peer(args.encoder, args.widths, num_classes, read_weights(args.weights) if args.weights else None)


def make_networks(args: argparse.Namespace, num_classes: int, seed: int) -> dict[str, nn.Module]:
    """Those that are trained, by name."""
    name = name_ours(args.equal)
    networks: dict[str, nn.Module] = {name: make_ours(args, args.equal, num_classes, seed)}
    if args.constants:
        networks[name + CONSTANTS] = make_ours(args, args.equal, num_classes, seed)
    return networks if args.missing else networks | {PEER: make_peer(args, num_classes, seed)}


def name_ours(widths: list[int]) -> str:
    return f"ours, widths {' '.join(map(str, widths))}"


def make_step(network: nn.Module, args: argparse.Namespace, frozen: int, device: torch.device) -> TrainStep:
    network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    depths: Any = network.depths
    loss = make_loss("ce_dice", "mean", depths)
    optimizer = make_optimizer(network, "adamw", args.learning_rate, 0.9, 1e-4)
    dtype = choose_precision(args.precision, device)
    return TrainStep(network, optimizer, loss, device, dtype, encoder_share=encoder_share(args.encoder_lr, frozen))


def by_constants(image: Tensor) -> Tensor:
    """An image in [0, 1] by ImageNet's mean and deviation."""
    mean, std = IMAGENET.to(image.device)
    return (image - mean) / std


def train(
    name: str, network: nn.Module, pairs: Pairs, args: argparse.Namespace, seed: int, device: torch.device
) -> None:
    """All epochs, over the same batches whatever the network."""
    limits: dict[str, Any] = {"flips": "all" if args.set == "dsb2018" else "horizontal", "quarter_turns": False}
    limits |= {"brightness": 0.2, "hue": 10, "channels": 3}
    loader, sizes = (
        Loader(RawSamples(pairs, Crops(None, 0.0, None), seed, **limits)),
        cut_epoch(len(pairs), args.batch_size),
    )

    def batches(shards: list[list[int]], epoch: int):
        for batch in loader.batches(shards, epoch):
            image, mask = augment_batch(*(one.to(device) for one in batch))
            if name.endswith(CONSTANTS):
                mean, std = batch[-1].to(device)[..., None, None].unbind(1)
                image = by_constants(image * (std + STD_FLOOR) + mean)
            yield image, mask

    step = make_step(network, args, args.frozen * len(sizes), device)
    rate = schedule(args.learning_rate, 2 * len(sizes), args.epochs * len(sizes))
    for epoch in range(args.epochs):
        began, losses = time.monotonic(), torch.zeros(2, dtype=torch.float64, device=device)
        shards = [one.tolist() for one in torch.tensor(epoch_order(len(pairs), seed, epoch)).split(sizes)]
        if name != PEER:  # which keeps its moving averages
            reset_statistics(network)
        for sums in train_steps(step, batches(shards, epoch), rate, epoch * len(sizes)):
            losses += sums
        loss, seconds = losses[0] / losses[1], time.monotonic() - began
        print(f"{name}: epoch {epoch + 1}, loss {loss.item():.4f}, {seconds:.0f} s", flush=True)


@torch.inference_mode()
def score(name: str, network: nn.Module, pairs: Pairs, args: argparse.Namespace, device: torch.device) -> np.ndarray:
    """IoU per image of each head: (num_heads, images)."""
    network.eval()
    found = []
    for image, mask in plain_batches(pairs, range(len(pairs)), args.batch_size):
        logits = network((by_constants if name.endswith(CONSTANTS) else standardise)(image.to(device)))
        masks = (to_mask(to_probs(one.float(), one.shape[1]), one.shape[1]).cpu() for one in logits)
        found.append(torch.stack([per_image_iou(confusion(one, mask, SETS[args.set])) for one in masks]))
    return torch.cat(found, dim=1).numpy()


def difference(one: list[np.ndarray], other: list[np.ndarray]) -> str:
    """Of two networks' IoU (images,) by seed: the mean, its 95 % interval over the images, and that of each seed."""
    seeds = np.stack(one) - np.stack(other)
    each = seeds.mean(axis=0)
    means = each[np.random.default_rng(0).integers(len(each), size=(10_000, len(each)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    of_seeds = f"; {', '.join(f'{one:+.4f}' for one in seeds.mean(axis=1))} by seed" if len(seeds) > 1 else ""
    return f"{each.mean():+.4f} ({low:+.4f} to {high:+.4f}{of_seeds})"


def time_steps(args: argparse.Namespace, num_classes: int, device: torch.device) -> list[str]:
    """A table of steps: median seconds of each, in interleaved rounds, of which the first is not counted."""
    networks: dict[str, nn.Module] = {} if args.missing else {PEER: make_peer(args, num_classes, 0)}
    networks |= {name_ours(one): make_ours(args, one, num_classes, 0) for one in (args.equal, args.widths)}
    example = torch.randn(1, 3, args.size, args.size)
    macs = {name: args.batch_size * count_macs(one.eval(), example) / 1e9 for name, one in networks.items()}
    steps = {name: make_step(one.train(), args, 0, device) for name, one in networks.items()}
    image = torch.randn(args.batch_size, 3, args.size, args.size)
    mask = torch.randint(0, max(2, num_classes), (args.batch_size, args.size, args.size), dtype=torch.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds + 1):
        for name, step in steps.items():
            seconds[name].append(timed(lambda step=step: step(image, mask, len(mask), 0.0, 0, 0), device))
    first = next(iter(seconds))
    lines = ["| step | seconds | slowest to fastest | of the first | GMACs of a pass | ms a GMAC |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, times in seconds.items():
        took, least, most = statistics.median(times[1:]), min(times[1:]), max(times[1:])
        share = took / statistics.median(seconds[first][1:])
        lines.append(
            f"| {name} | {took:.3f} | {most:.3f} to {least:.3f} | {share:.2f} | {macs[name]:.2f} "
            f"| {1000 * took / macs[name]:.1f} |"
        )
    return lines


def tabulate(networks: dict[str, nn.Module], scores: Scores, size: int) -> list[str]:
    """Every depth beside the peer, and by ImageNet's constants beside each image's own statistics."""
    lines = ["| network | IoU | less the peer's, 95 % interval | less by own statistics | parameters | GMACs |"]
    lines.append("| --- | ---: | --- | --- | ---: | ---: |")
    for name, network in networks.items():
        for place, depth in enumerate(network.depths):  # pyright: ignore[reportArgumentType]
            pruned: Any = network if name == PEER else prune(network, depth)  # pyright: ignore[reportArgumentType]
            macs = count_macs(pruned.eval(), next(pruned.parameters()).new_empty(1, 3, size, size)) / 1e9
            own = [one[place] for one in scores[name]]
            beside = difference(own, [one[-1] for one in scores[PEER]]) if PEER in scores and name != PEER else ""
            plain = [one[place] for one in scores[name.removesuffix(CONSTANTS)]]
            less = difference(own, plain) if name.endswith(CONSTANTS) else ""
            lines.append(
                f"| {name}{'' if name == PEER else f', L{depth}'} | {np.mean(own):.4f} | {beside} | {less} "
                f"| {count_parameters(pruned) / 1e6:.2f} M | {macs:.3f} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with pets, camvid or dsb2018")
    parser.add_argument("--set", choices=SETS, default="pets")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", type=Path, help="of the encoder, by timm's names; without, all are drawn")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256, 256])
    parser.add_argument("--equal", type=int, nargs="+", help="default: --widths")
    parser.add_argument("--constants", action="store_true")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--encoder-lr", type=float, default=0.3)
    parser.add_argument("--frozen", type=int, default=1, help="epochs")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.equal = args.equal or args.widths
    torch.set_num_threads(1)
    num_classes = SETS[args.set]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_precision(args.precision, device)
    machine = describe(device, [dtype])
    args.missing = ""
    try:
        make_peer(args, num_classes, 0)
    except Exception as error:
        args.missing = f"{PEER}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    steps = time_steps(args, num_classes, device)
    print("\n".join(steps), flush=True)
    data = read_set(args.data, args.set, args.size)
    scores: Scores = {}
    for number, seed in enumerate(args.seeds, start=1):
        networks = make_networks(args, num_classes, seed)
        ours: Any = networks[name_ours(args.equal)]
        learnt, test = (Pairs(data[split], ours, split) for split in ("train", "test"))
        for name, network in networks.items():
            train(name, network, learnt, args, seed, device)
            scores.setdefault(name, []).append(score(name, network, test, args, device))
        options = f"--encoder {args.encoder}{' --weights ' + args.weights.name if args.weights else ''}"
        keys = ("set", "size", "epochs", "learning_rate", "encoder_lr", "rounds", "frozen", "widths", "equal", "seeds")
        for key in keys:
            value = getattr(args, key)
            options += f" --{key.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        options += " --constants" if args.constants else ""
        lines = [
            *head(
                f"UNet++ on {args.encoder}: ours beside the peer",
                f"python -m benchmarks.encoders --data ../shared/data {options}",
                machine,
            ),
            f"{len(learnt)} training and {len(test)} test images of {args.size}x{args.size} px of {args.set}, batches "
            f"of {args.batch_size}, {SHORT[dtype]}, encoder {'trained before' if args.weights else 'drawn'}, {number} "
            f"seed{'s' * (number > 1)}. IoU per image on test after the last epoch.",
            "",
            *tabulate(networks, scores, args.size),
            "",
            f"A training step of {args.batch_size} images, by default and at about equal operations:",
            "",
            *steps,
            "",
            *([f"Not measured: {args.missing}.", ""] if args.missing else []),
        ]
        text = "\n".join(lines).rstrip() + "\n"  # after each seed: what is done is kept
        print(text)
        if args.out:
            args.out.write_text(text)


if __name__ == "__main__":
    main()
