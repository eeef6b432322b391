"""What rules may ask: of the data, of the machine, and what was chosen before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

LARGE = 0.25  # of the shorter side: wider objects are recognised by context, not by texture
UNLIKE = 1.05  # aspect ratios that differ by more are different shapes


@dataclass(frozen=True)
class Machine:
    """Where training will run."""

    cores: int
    memory_mib: float
    gpus: int = 0
    gpu_memory_mib: float = 0.0

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def budget_mib(self) -> float:
        """Memory for a training step: half of the machine's, or most of a GPU's."""
        return 0.85 * self.gpu_memory_mib if self.gpus else 0.5 * self.memory_mib


@dataclass(frozen=True)
class Facts:
    """What rules ask of a set."""

    num_images: int
    height: float  # the median image
    width: float
    shorter_px: float  # three quarters of the images have at least this
    longest_px: float  # of any side
    one_size: bool
    one_shape: bool  # height by width, within UNLIKE
    grey: bool
    channels: int
    num_classes: int
    multilabel: bool
    width_px: float  # of what the classes cover, see `object_sizes.mean_width_px`
    object_px: float  # nine tenths of the objects are smaller
    foreground_share: float
    upright: bool | None = None  # None if unknown
    mirrored: float = 0.5  # share of images that are told from their upside-down copies
    turned: float = 0.5  # the same of turned ones
    sideways: bool = False

    @property
    def by_context(self) -> bool:
        """Whether context decides what a pixel is: with several classes, or objects that fill much of the image."""
        return self.num_classes > 2 or self.width_px > LARGE * min(self.height, self.width)


def facts_of(fingerprint: Mapping[str, Any], **others: Any) -> Facts:
    """The facts of a fingerprint (`pipelines.dataset.fingerprint.summarise`), and what it does not hold."""
    images, prepared = fingerprint["images"], fingerprint["prepared"]
    objects = fingerprint["objects"]
    return Facts(
        **{
            "num_images": fingerprint["splits"]["all"]["num_images"],
            "height": images["height_px"]["median"],
            "width": images["width_px"]["median"],
            "shorter_px": images["shorter_px"]["q25"],
            "longest_px": max(images["height_px"]["max"], images["width_px"]["max"]),
            "one_size": images["num_sizes"] == 1,
            "one_shape": images["shape"]["max"] <= UNLIKE * images["shape"]["min"],
            "grey": images["grey"] == fingerprint["splits"]["all"]["num_images"],
            "channels": fingerprint["prepared"]["channels"],
            "num_classes": prepared["num_classes"],
            "multilabel": prepared["multilabel"],
            "width_px": objects["width_px"],
            "object_px": objects["stored"]["p90"],
            "foreground_share": fingerprint["splits"]["all"]["foreground_share"],
        }
        | others
    )


Chosen = Mapping[str, Any]


class Given(NamedTuple):
    """What a rule may ask."""

    facts: Facts
    machine: Machine
    chosen: Chosen  # before it, by dotted key
