"""The plan of a project: values of params.yaml with reasons, what was found, and what a run will take."""

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
from unetpp.errors import UserError

__all__ = ["Choice", "Plan", "make_plan"]

MINUTES = 30.0
FEW, SALTS, NEAR = 100, 200, 0.34  # images, salts tried, and how far a split may deviate from its share
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
    """The plan for a data set.

    Args:
        location: a folder, as ingest.location.
        name: of the project, its registered model and its experiment.
        minutes: time limit of stage train on this machine.
        base: params to change; None takes those of the package.
        use_gpu: None uses a GPU if there is one.
        probe: measure time and memory by a few training steps.
        keep: values by dotted key that the user has set and the plan keeps.

    Raises:
        UserError: no known layout of images and masks fits.
    """
    kept = dict(keep or {})
    base = override(base or load_params(Path(__file__).parents[2] / "params.yaml"), kept)
    plan, root = Plan(), Path(location).expanduser()
    plan.choose("ingest.kind", "folder", "a folder on this machine")
    plan.choose("ingest.location", location, "where the data are")
    with laid_out(root, base.ingest, plan) as (raw, layout, names):
        found = survey(raw, layout, root, names, base, plan, kept)
        _describe(found, plan)
        _choose_kinds(found, plan)
        machine = find_machine(use_gpu)
        plan.params |= apply(found.facts, machine, plan.values | kept)
        if {sample.split for sample in found.samples} == {*SPLITS}:
            plan.params.pop("prepare.shares", None)  # nothing is drawn by them
        _choose_salt(found, override(base, plan.values | kept), plan)
        if probe:
            fit_time(plan, found.facts, machine, found.samples, base, minutes, kept)
    plan.choose("register.experiment", name, "named after the project")
    plan.choose("register.model_name", name, "named after the project")
    for key in kept:
        plan.params.pop(key, None)
    plan.asked = [line for line in plan.asked if not any(key in line for key in kept)]  # answered
    plan.params = dict(sorted(plan.params.items(), key=lambda pair: ORDER.index(pair[0].split(".")[0])))
    return plan


def _describe(found: Survey, plan: Plan) -> None:
    """A first line about the images."""
    facts = found.facts
    grey = "grey" if facts.grey else "RGB" if facts.channels == 3 else f"of {facts.channels} channels"
    sizes = f"{facts.width:.0f} x {facts.height:.0f} px"
    if not facts.one_size:
        low, high = min(found.sizes), max(found.sizes)
        sizes += f" (median), from {low[1]} x {low[0]} to {high[1]} x {high[0]} px"
    plan.found.insert(0, f"{facts.num_images:,} pairs of images and masks; images are {grey}, {sizes}")


def _folder(sample: Sample) -> str:
    """The folder of an image, without the part that names its split."""
    parts = sample.id.split("/")[:-1]
    return "/".join(parts[1:] if sample.split and parts else parts)


def _choose_kinds(found: Survey, plan: Plan) -> None:
    """Microscopy if images have many objects and no orientation; else folders or appearance, if they differ."""
    places = {(_folder(sample), sample.split) for sample in found.samples}
    folders = {folder for folder, _ in places}
    apart = any(split for _, split in places) and len(places) == len(folders)  # each in one split, as patients are
    per_image = found.fingerprint["objects"]["per_image"]["median"]
    if 1 < len(folders) <= MOST_FOLDERS and not apart and "prepare.groups.pattern" not in plan.params:
        plan.choose("prepare.kinds", "folder", f"images are in {len(folders)} folders")
        if "" not in folders and not any(split for _, split in places):
            line = "prepare.groups.pattern: ^(.+)/"
            plan.asked.append(f"if each folder is a patient or a recording, set in params.yaml  {line}")
    elif found.facts.num_classes <= 2 and found.orientation.upright is False and per_image >= MANY_OBJECTS:
        plan.choose(
            "prepare.kinds", "microscopy", f"{per_image:.0f} objects per image and no orientation, as in microscopy"
        )
    elif len(found.looks) > 1:
        seen = ", ".join(f"{number} {look}" for look, number in found.looks.most_common())
        plan.choose("prepare.kinds", "looks", f"images differ in appearance: {seen}")
    else:
        plan.choose("prepare.kinds", "none", "images show no distinct kinds")


def _choose_salt(found: Survey, params: Params, plan: Plan) -> None:
    """Chance may leave a split of a small set nearly empty; another salt then divides it better."""
    samples, prepare = found.samples, params.prepare
    if any(sample.split for sample in samples):
        return
    groups = [[group] for group in find_groups(samples, prepare.groups)]
    if (num := len({group for (group,) in groups})) < len(SPLITS):
        raise UserError(
            f"{plan.values['ingest.location']}: found {len(samples)} images in {num} group{'s' * (num > 1)} that stay "
            "together, such as volumes; expected at least 3, for train, val and test: add images, or give the slices "
            'of a volume as files of their own (docs/data.md, "Volumes")'
        )
    if len(samples) >= FEW or prepare.folds:
        return
    wanted = {split: getattr(prepare.shares, split) * len(samples) for split in SPLITS}

    def far(salt: str) -> float:
        counts = Counter(one.split for one in place(groups, prepare, salt))
        return max(abs(counts[split] - number) / number for split, number in wanted.items())

    salts = [prepare.salt, *(f"{prepare.salt}-{number}" for number in range(1, SALTS))]
    best = next((salt for salt in salts if far(salt) <= NEAR), min(salts, key=far))
    if best != prepare.salt:
        plan.choose("prepare.salt", best, f"splits {len(samples)} images close to the shares")
