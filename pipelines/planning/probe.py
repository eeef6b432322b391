"""What a run will take, by a few training steps on this machine; the number of epochs follows from it."""

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.params import Params, override
from pipelines.core.temporary_folders import scratch
from pipelines.dataset.layouts import Sample
from pipelines.dataset.loading import load_sample
from pipelines.evaluation.engine_scores import estimate_s
from pipelines.planning.choices import Choice, Plan
from pipelines.planning.facts import Facts, Machine
from pipelines.planning.network_size import seen_area, widths_of
from pipelines.training.spec import make_spec
from pipelines.tuning.probe import Probe, probe
from unetpp.data.arrow_split import SplitWriter
from unetpp.data.manifest import Manifest, SplitFacts
from unetpp.errors import FileError
from unetpp.files import sha256

LEAST_EPOCHS, MOST_EPOCHS = 10, 150
LEAST_WIDTH = 8  # of level 0
MARGIN = 0.9  # of the time, as the probe only sees the start
KNOWN = ("size", "fit", "channels", "num_classes", "multilabel", "background")  # of a manifest, from params
VALIDATED = 4  # images that the probe validates
TOGETHER = 0.85  # n cores are n to this power times as fast as one
DEPTHS_COST = 2.5  # passes with all heads: evaluate runs each depth, in several settings
START_S = 60  # of a stage's processes


@dataclass(frozen=True)
class Counts:
    """Images by split."""

    train: int
    val: int
    test: int

    @classmethod
    def of(cls, samples: Sequence[Sample], params: Params) -> "Counts":
        """As the set's own splits say it, else by shares."""
        shares, num = params.prepare.shares, len(samples)
        given = Counter(sample.split for sample in samples)
        if given["train"]:
            drawn = 0 if given["val"] else round(shares.val / (shares.train + shares.val) * given["train"])
            return cls(given["train"] - drawn, max(1, given["val"] or drawn), max(1, given["test"]))
        return cls(*(max(1, round(share * num)) for share in (shares.train, shares.val, shares.test)))


def try_out(params: Params, samples: Sequence[Sample]) -> Probe:
    """A few training steps with these params on a few of these samples, timed as on an idle machine.

    On a CPU this is the processor time of one thread, since wall-clock time includes other processes.

    Raises:
        FileError: none of the samples can be read.
    """
    train, clock = params.train, time.perf_counter if params.train.use_gpu else time.process_time
    one = {"num_workers": 1, "cpus_per_worker": 1, "batch_size": max(1, train.batch_size // train.max_workers)}
    alone = params.model_copy(update={"train": train.model_copy(update=one)})
    wanted = 2 * one["batch_size"]
    with scratch() as folder:
        error, loaded = None, []
        for sample in samples:
            try:
                loaded.append((sample.id, load_sample(sample, params.prepare)))
            except FileError as problem:
                error = problem
            if len(loaded) == wanted:
                break
        if not loaded:
            raise error or FileError(folder, "found no samples", "add some")
        # With fewer images than a batch some are repeated: a step takes the same time.
        rows = [loaded[index % len(loaded)] for index in range(wanted)]
        for split, kept in (("train", rows), ("val", rows[:VALIDATED])):
            with SplitWriter(folder / f"{split}.arrow", params.prepare.multilabel) as writer:
                for number, (id, sample) in enumerate(kept):
                    writer.add(f"{id} {number}", sample.kind, sample.image, sample.mask)
        manifest = _manifest(params, folder)
        manifest.write(folder)
        return probe(make_spec(alone, params.search.widths[0], folder, manifest), clock)


def _manifest(params: Params, folder: Path) -> Manifest:
    known = {key: getattr(params.prepare, key) for key in KNOWN}
    return Manifest(
        **known,
        splits={split: SplitFacts(1, sha256(folder / f"{split}.arrow")) for split in ("train", "val")},
    )


def fit_time(
    plan: Plan,
    facts: Facts,
    machine: Machine,
    samples: Sequence[Sample],
    base: Params,
    minutes: float,
    kept: Collection[str] = (),
) -> None:
    """Choose the number of epochs that fit into the minutes, with narrower widths and fewer crops if too few would fit,
    and estimate the cost of a run. Epochs set by the user are kept."""
    while True:
        params = override(base, plan.values)
        found, counts = try_out(params, samples), Counts.of(samples, params)
        faster = 1.0 if machine.gpus else params.train.cpus_per_worker**TOGETHER
        crops = params.train.crops_per_image
        steps, epoch_s = _epoch(found, counts, crops, params.train.batch_size, faster)
        epochs = int(MARGIN * minutes * 60 / epoch_s)
        widths = params.search.widths[0]
        if epochs >= LEAST_EPOCHS or widths[0] // 2 < LEAST_WIDTH or "search.widths" not in plan.params:
            break
        narrower = widths_of(len(widths) - 1, widths[0] // 2)
        reason = f"{plan.params['search.widths'].reason}; halved to fit {LEAST_EPOCHS} epochs into {_say(minutes)}"
        plan.params["search.widths"] = Choice([narrower], reason)
    if epochs < LEAST_EPOCHS and crops > 1 and "train.crops_per_image" in plan.params:
        crops = max(1, int(crops * MARGIN * minutes * 60 / epoch_s / LEAST_EPOCHS))
        reason = f"less than the area of all images, to fit {LEAST_EPOCHS} epochs into {_say(minutes)}"
        plan.choose("train.crops_per_image", crops, reason)
        steps, epoch_s = _epoch(found, counts, crops, params.train.batch_size, faster)
        epochs = int(MARGIN * minutes * 60 / epoch_s)
    bounded = max(LEAST_EPOCHS, min(MOST_EPOCHS, epochs))
    reason = f"about {_say(minutes)} of training, by a timed trial"
    if bounded != epochs:
        reason = f"the {'most' if epochs > bounded else 'fewest'} that make sense; {_say(minutes)} would fit {epochs}"
    if "train.epochs" in kept:
        bounded = base.train.epochs
    else:
        plan.choose("train.epochs", bounded, reason)
    own = facts.height * facts.width / seen_area(chosen_of(params)) if params.prepare.size is not None else 1.0
    pass_s = own * found.image_s / faster
    evaluate_s = START_S + DEPTHS_COST * pass_s * (counts.test + params.evaluate.latency_rounds)
    levels, formats = len(widths) - 1, params.export.formats
    evaluate_s += estimate_s(DEPTHS_COST * pass_s, levels, counts.val, counts.test, formats, params.evaluate)
    where = f"{machine.gpus} GPUs" if machine.gpus else f"{machine.cores} idle cores"
    training, evaluation = (_say(max(1, round(seconds / 60))) for seconds in (bounded * epoch_s, evaluate_s))
    plan.cost = (
        f"training: about {training} ({bounded} epochs of {steps} steps); evaluation: about {evaluation}; memory: "
        f"{found.memory_mib / 1024:.1f} GiB (timed on a few steps, for {where})"
    )


def _say(minutes: float) -> str:
    return f"{minutes:g} minute{'s' * (minutes != 1)}"


def _epoch(found: Probe, counts: Counts, crops: int, batch: int, faster: float) -> tuple[int, float]:
    """Steps and seconds of an epoch with its validation."""
    steps = max(1, counts.train * crops // batch)
    return steps, (steps * found.step_s + counts.val * found.image_s) / faster


def chosen_of(params: Params) -> dict:
    """The values by which `seen_area` tells what a network is trained on."""
    return {"train.crop_px": params.train.crop_px, "prepare.size": params.prepare.size}
