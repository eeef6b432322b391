"""All that decides a training, as plain values that travel to every process, and the name that they give a run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.core.code_closure import code_hash
from pipelines.core.params import Params
from pipelines.core.training_sections import Model
from pipelines.storage.node_cache import find_file
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import Manifest, read_manifest
from unetpp.errors import UserError
from unetpp.network.losses import balanced_weights
from unetpp.network.model import NestedUNet


def make_settings(params: Params, widths: Sequence[int], prepared: Path, shared: dict | None = None) -> dict[str, Any]:
    """All that decides a training, as plain values: the sections of params that it reads, widths, prepared data.

    Args:
        shared: where other machines find the data (`node_cache.share`); None reads them in `prepared`.

    Raises:
        UserError: no prepared data, or ones whose class weights are asked for and not known.
    """
    used = params.model_dump(mode="json", include={"model", "train", "augment"})
    manifest = read_manifest(prepared)
    return {
        "params": used,
        "widths": list(widths),
        "prepared": str(prepared.absolute()),
        "manifest": manifest,
        "class_weights": find_class_weights(params.train.class_weights, manifest, prepared),
        "shared": shared,
    }


def open_splits(settings: dict[str, Any]) -> tuple[Split, Split]:
    """The splits train and val: of the prepared folder, or of this node's cache."""
    if settings["shared"] is None:
        paths = [Path(settings["prepared"]) / f"{split}.arrow" for split in ("train", "val")]
    else:
        paths = [find_file(settings["shared"], split) for split in ("train", "val")]
    return Split(paths[0]), Split(paths[1])


def build_network(model: Model, widths: list[int], manifest: Manifest) -> NestedUNet:
    """The network of section `model`, with these widths, for the prepared data of a manifest."""
    return NestedUNet(
        widths, manifest.channels, manifest.num_classes, multilabel=manifest.multilabel, **model.model_dump()
    )


def find_class_weights(wanted: str | Sequence[float] | None, manifest: Manifest, prepared: Path) -> list[float] | None:
    """What `train.class_weights` asks for: max(2, num_classes) weights, or None.

    Raises:
        UserError: the manifest of the prepared data does not say how many pixels each class has.
    """
    if wanted is None:
        return None
    if wanted != "balanced":
        return [float(one) for one in wanted]
    if manifest.class_pixels is None:
        raise UserError(
            f"{prepared}/manifest.json: found no class_pixels, by which train.class_weights=balanced weighs; run "
            "`dvc repro prepare` with this version, or give the weights themselves"
        )
    pixels = manifest.class_pixels
    return balanced_weights(pixels + [0] * (max(2, manifest.num_classes) - len(pixels)))


def run_name(stage: str, settings: dict[str, Any]) -> str:
    """A run's name: a hash of params, widths, data and code, so that only the very same training is ever resumed."""
    code = code_hash("pipelines.search" if stage == "search" else "pipelines.train")
    splits = {name: asdict(split) for name, split in settings["manifest"].splits.items()}
    facts = [settings["params"], settings["widths"], splits, code]
    if settings.get("init"):
        facts.append(settings["init"]["sha256"])
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{stage}-{digest[:16]}"
