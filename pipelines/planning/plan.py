"""The plan of a project: values of params.yaml with the reason of each, what was found, and what a run will take."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.core.params import Params, load_params, override
from pipelines.dataset.groups import find_groups
from pipelines.dataset.layouts import Sample
from pipelines.dataset.splits import SPLITS, place
from pipelines.planning.choices import Choice, Plan
from pipelines.planning.machine import find_machine
from pipelines.planning.probe import fit_time
from pipelines.planning.rules import apply
from pipelines.planning.survey import MANY_OBJECTS, MOST_FOLDERS, Survey, laid_out, survey

__all__ = ["Choice", "Plan", "make_plan"]

MINUTES = 30.0
FEW, SALTS, NEAR = 100, 200, 0.34  # images, salts tried, and how far a split may be from its share
ORDER = ("ingest", "prepare", "model", "search", "train", "augment", "export", "evaluate", "register", "cluster")
SUFFIXES = {"zip": (".zip",), "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")}


def make_plan(
    location: str,
    name: str,
    minutes: float = MINUTES,
    *,
    base: Params | None = None,
    use_gpu: bool | None = None,
    probe: bool = True,
    keep: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan for the data at a place.

    Args:
        location: a folder, as ingest.location.
        name: of the project; the registered model and the experiment are called so.
        minutes: that stage train may take on this machine.
        base: the params of which values are changed; None takes those that the repository ships.
        use_gpu: None takes one where there is one.
        probe: run a few training steps to tell minutes and memory; else they are counted alone.
        keep: values by dotted key that the user has set and that the plan works with.

    Raises:
        UserError: there are no images with masks that any layout fits.
    """
    kept = dict(keep or {})
    base = override(base or load_params(Path(__file__).parents[2] / "params.yaml"), kept)
    plan, root = Plan(), Path(location).expanduser()
    plan.choose("ingest.kind", "folder", "a folder of this machine")
    plan.choose("ingest.location", location, "where the data lie")
    with laid_out(root, base.ingest, plan) as (raw, layout, names):
        found = survey(raw, layout, root, names, base, plan, kept)
        _describe(found, plan)
        _choose_kinds(found, plan)
        machine = find_machine(use_gpu)
        plan.params |= apply(found.facts, machine, plan.values | kept)
        _choose_salt(found, override(base, plan.values | kept), plan)
        if probe:
            fit_time(plan, found.facts, machine, found.samples, base, minutes, kept)
    plan.choose("register.experiment", name, "named after the project")
    plan.choose("register.model_name", name, "named after the project")
    for key in kept:
        plan.params.pop(key, None)
    plan.params = dict(sorted(plan.params.items(), key=lambda pair: ORDER.index(pair[0].split(".")[0])))
    return plan


def _describe(found: Survey, plan: Plan) -> None:
    """What is there, in front of what its masks mean."""
    facts = found.facts
    grey = "grey" if facts.grey else f"of {facts.channels} channels"
    sizes = f"{facts.width:.0f} x {facts.height:.0f} px"
    if not facts.one_size:
        low, high = min(found.sizes), max(found.sizes)
        sizes += f" at the median, from {low[1]} x {low[0]} to {high[1]} x {high[0]} px"
    plan.found.insert(0, f"{facts.num_images:,} pairs of images and masks; images are {grey}, {sizes}")


def _folder(sample: Sample) -> str:
    """Where an image lies, without what says its split."""
    parts = sample.id.split("/")[:-1]
    return "/".join(parts[1:] if sample.split and parts else parts)


def _choose_kinds(found: Survey, plan: Plan) -> None:
    """Kinds of microscopy where it looks like that: no up and down, many objects; else those of folders, if any."""
    folders = {_folder(sample) for sample in found.samples}
    per_image = found.fingerprint["objects"]["per_image"]["median"]
    if 1 < len(folders) <= MOST_FOLDERS and "prepare.groups.pattern" not in plan.params:
        plan.choose("prepare.kinds", "folder", f"images lie in {len(folders)} folders")
    elif found.facts.num_classes <= 2 and found.orientation.upright is False and per_image >= MANY_OBJECTS:
        plan.choose("prepare.kinds", "microscopy", f"{per_image:.0f} objects an image and no up or down, as microscopy")
    elif len(found.looks) > 1:
        seen = ", ".join(f"{number} {look}" for look, number in found.looks.most_common())
        plan.choose("prepare.kinds", "looks", f"images differ by their looks: {seen}")
    else:
        plan.choose("prepare.kinds", "none", "nothing tells kinds of images apart")


def _choose_salt(found: Survey, params: Params, plan: Plan) -> None:
    """Of few images chance may leave a split with hardly any: another salt then divides them better."""
    samples, prepare = found.samples, params.prepare
    if len(samples) >= FEW or any(sample.split for sample in samples) or prepare.folds:
        return
    groups = [[group] for group in find_groups(samples, prepare.groups)]
    wanted = {split: getattr(prepare.shares, split) * len(samples) for split in SPLITS}

    def far(salt: str) -> float:
        counts = Counter(one.split for one in place(groups, prepare, salt))
        return max(abs(counts[split] - number) / number for split, number in wanted.items())

    salts = [prepare.salt, *(f"{prepare.salt}-{number}" for number in range(1, SALTS))]
    best = next((salt for salt in salts if far(salt) <= NEAR), min(salts, key=far))
    if best != prepare.salt:
        plan.choose("prepare.salt", best, f"divides {len(samples)} images nearly by the shares")
