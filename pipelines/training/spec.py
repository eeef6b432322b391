"""Everything that determines a training run, as one record that is sent to every process, and the run's name."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.core.code_closure import code_hash
from pipelines.core.params import Params
from pipelines.core.training_sections import Augment, Model, Train
from pipelines.storage.encoder_weights import EncoderWeights, find_encoder_weights
from pipelines.storage.node_cache import find_file
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import Manifest, read_manifest
from unetpp.errors import UserError
from unetpp.network.losses import balanced_weights
from unetpp.network.model import NestedUNet


@dataclass(frozen=True)
class Init:
    """A file with the initial weights of a training run; `origin`: "uri" and "sha256" of the model they come from."""

    file: str
    sha256: str
    origin: dict[str, str] | None = None


@dataclass(frozen=True)
class TrainSpec:
    """A training run: the sections of params that it reads, the widths of its network, and its data.

    Attributes:
        prepared: folder of the prepared data.
        manifest: manifest of these data.
        class_weights: max(2, num_classes) weights, or None.
        shared: where other machines find the data (`node_cache.share`); if None, they are read from `prepared`.
        init: the initial weights; if None, they are drawn at random.
        encoder_weights: initial weights of the encoder, if there is no `init`.
    """

    model: Model
    train: Train
    augment: Augment
    widths: tuple[int, ...]
    prepared: Path
    manifest: Manifest
    class_weights: list[float] | None = None
    shared: dict | None = None
    init: Init | None = None
    encoder_weights: EncoderWeights | None = None

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """The sections of params as plain values."""
        return {name: getattr(self, name).model_dump(mode="json") for name in ("model", "train", "augment")}

    def build_network(self) -> NestedUNet:
        return build_network(self.model, self.widths, self.manifest)

    def find_init(self) -> Path | None:
        """The initial weights: on this machine, or in this node's cache."""
        if self.init is None:
            return None
        return Path(self.init.file) if self.shared is None else find_file(self.shared, "init")

    def open_splits(self) -> tuple[Split, Split]:
        """The splits train and val, from the prepared folder or this node's cache."""
        if self.shared is None:
            return Split(self.prepared / "train.arrow"), Split(self.prepared / "val.arrow")
        return Split(find_file(self.shared, "train")), Split(find_file(self.shared, "val"))


def make_spec(
    params: Params,
    widths: Sequence[int],
    prepared: Path,
    manifest: Manifest | None = None,
    shared: dict | None = None,
    init: Init | None = None,
) -> TrainSpec:
    """The training run that these params describe.

    Args:
        manifest: manifest of the prepared data; if None, it is read.

    Raises:
        UserError: there are no prepared data, or params ask for class weights that these data do not tell.
    """
    manifest = manifest or read_manifest(prepared)
    weights = find_class_weights(params.train.class_weights, manifest, prepared)
    return TrainSpec(
        params.model,
        params.train,
        params.augment,
        tuple(widths),
        prepared.absolute(),
        manifest,
        weights,
        shared,
        init,
        None if init else find_encoder_weights(params.model),
    )


def build_network(model: Model, widths: tuple[int, ...], manifest: Manifest) -> NestedUNet:
    """The network of section `model` with these widths, for the prepared data that a manifest describes."""
    meaning = {"multilabel": manifest.multilabel, "background": manifest.background}
    return NestedUNet(widths, manifest.channels, manifest.num_classes, **meaning, **model.build)


def find_class_weights(wanted: str | Sequence[float] | None, manifest: Manifest, prepared: Path) -> list[float] | None:
    """The weights that `train.class_weights` asks for: max(2, num_classes) of them, or None.

    Raises:
        UserError: the manifest of the prepared data does not contain the number of pixels of each class.
    """
    if wanted is None:
        return None
    if wanted != "balanced":
        return [float(one) for one in wanted]
    if manifest.class_pixels is None:
        raise UserError(
            f"{prepared}/manifest.json: found no class_pixels; expected them for train.class_weights=balanced: run "
            "`dvc repro prepare` with this version, or set the weights as numbers"
        )
    pixels = manifest.class_pixels
    return balanced_weights(pixels + [0] * (max(2, manifest.num_classes) - len(pixels)))


def run_name(stage: str, spec: TrainSpec, space: Any = None) -> str:
    """A run's name: a hash of params, widths, data and code, so that only the very same training run is resumed.

    Args:
        space: for a search, in place of the widths: everything that determines its trials, as plain values.
    """
    code = code_hash("pipelines.search" if stage == "search" else "pipelines.train")
    splits = {name: asdict(split) for name, split in spec.manifest.splits.items()}
    facts = [spec.sections, space or list(spec.widths), splits, code]
    if not spec.manifest.background:
        facts.append("class 0 is a class")
    if given := spec.init or spec.encoder_weights:
        facts.append(given.sha256)
    if spec.manifest.frame and spec.manifest.frame.canvas:
        facts.append(spec.manifest.frame.canvas)  # the images are kept without their padding
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{stage}-{digest[:16]}"
