"""`unetpp plan`: what a new plan would change in a project, and what a newer version adds; `--accept` writes it.

A value that the user has set (neither a plan's nor the default) is kept, and the plan works with it. Naming its key
takes the plan's.
"""

import difflib
from pathlib import Path

import yaml

from pipelines.core.files import replacing
from pipelines.core.params import Params
from pipelines.planning.plan import Choice, Plan
from pipelines.project import params_text, said, template
from pipelines.project.init import apply, checked, minutes_of, plan_for, write
from pipelines.project.sources import Data
from unetpp.errors import UserError
from unetpp.files import read_text

FIX = "run this in a project's folder, or name one; `unetpp init` makes one"


def renew(folder: Path, minutes: float | None = None, accept: list[str] | None = None) -> None:
    """Print what a new plan would change; write it where it is accepted.

    Args:
        minutes: time limit of training; None is that of the last plan.
        accept: keys or sections to write; an empty list is all, None writes nothing.

    Raises:
        UserError: no project, data that no layout fits, a key that does not change, or an unknown one.
    """
    old, shipped = read_text(folder / "params.yaml", FIX), template.shipped("params.yaml")
    text, added = params_text.add_missing(old, shipped)
    strange = params_text.unknown(text, shipped)
    params = checked(_without(text, strange))
    kept = {key: value for key, value in set_by_hand(text, shipped).items() if not _named(key, accept or [])}
    name, minutes = params.registry.model_name, minutes or minutes_of(text)
    plan = plan_for(folder, _data_of(params, folder), name, minutes, params, kept)
    there = params_text.entries(text)
    changed = {
        key: choice
        for key, choice in plan.params.items()
        if key not in kept and params_text.written(there[key].value) != params_text.written(choice.value)
    }
    _print(plan, {key: (there[key].value, choice) for key, choice in changed.items()}, added, kept)
    pipeline = _renewed(folder)
    if accept:
        lost = [one for one in accept if not any(_named(key, [one]) for key in (*changed, *added))]
        if lost:
            raise UserError(f"{', '.join(lost)}: found no change of that name; expected some of those above")
        changed = {key: choice for key, choice in changed.items() if _named(key, accept)}
    if accept is not None:
        text = apply(text, Plan(changed))
        checked(_without(text, strange))
        if text != old:
            with replacing(folder / "params.yaml") as partial:
                partial.write_text(text, encoding="utf-8")
        if pipeline:
            with replacing(folder / "dvc.yaml") as partial:
                partial.write_text(pipeline, encoding="utf-8")
        if pipeline is not None:
            write(folder, text)
        print(f"\nwritten: {len(changed)} value(s) changed, {len(added)} key(s) added")
    elif changed or added or pipeline:
        print("\nnothing was written: `unetpp plan --accept` accepts all changes, `--accept KEY ...` some")
    else:
        print("\nparams.yaml already matches the plan")
    if strange:
        near = {key: difflib.get_close_matches(key, params_text.entries(shipped), n=1) for key in strange}
        named = ", ".join(f"{key}{f' (did you mean {like[0]}?)' if like else ''}" for key, like in near.items())
        raise UserError(f"params.yaml: keys unknown to this version: {named}; remove or rename them")


def set_by_hand(text: str, shipped: str) -> dict:
    """The values, by key, that the user has set: neither a plan's nor the defaults."""
    known = params_text.entries(shipped)
    return {
        key: entry.value
        for key, entry in params_text.entries(text).items()
        if key in known
        and not known[key].block
        and params_text.written(entry.value) != params_text.written(known[key].value)
        and not params_text.is_planned(text, key)
        and not key.startswith(("ingest.kind", "ingest.location", "register."))
    }


def _named(key: str, names: list[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _data_of(params: Params, folder: Path) -> Data:
    """The data of a project; anything but a folder is in data/raw once stage ingest has run."""
    kind, location = params.ingest.kind, str(params.ingest.location)
    raw = folder / "data/raw"
    if kind == "folder":
        return Data(kind, location, folder / Path(location).expanduser())
    return Data(kind, location, raw if (raw / "manifest.json").is_file() else None)


def _without(text: str, keys: list[str]) -> str:
    """The values as YAML, without these keys."""
    values = yaml.safe_load(text)
    for key in keys:
        *path, last = key.split(".")
        section = values
        for name in path:
            section = section.get(name, {})
        section.pop(last, None)
    return yaml.safe_dump(values)


def _print(plan: Plan, changed: dict[str, tuple[object, Choice]], added: list[str], kept: dict) -> None:
    said.lines("found", plan.found)
    changes = [
        said.entry(key, f"{said.shown(value)} -> {said.shown(choice.value)}", choice.reason)
        for key, (value, choice) in changed.items()
    ]
    said.lines("changes to params.yaml", changes)
    said.lines("new keys of this version, with their defaults", [", ".join(added)] if added else [])
    said.lines("kept, because you set them", [f"{key}: {said.shown(value)}" for key, value in kept.items()])
    said.last(plan)


def _renewed(folder: Path) -> str | None:
    """The new text of dvc.yaml; "" if it stays, None if `unetpp init` did not write it."""
    path = folder / "dvc.yaml"
    there = path.read_text(encoding="utf-8") if path.exists() else ""
    wanted = template.pipeline()
    if there and template.SIGN not in there[:200]:
        return None
    if there.partition("\n")[2] == wanted.partition("\n")[2]:
        return ""
    lines = [*difflib.unified_diff(there.splitlines()[1:], wanted.splitlines()[1:], lineterm="", n=0)][2:]
    if not there or template.is_unchanged(there):
        said.lines("dvc.yaml of this version", [line for line in lines if line[0] != "@"] if there else ["new"])
        return wanted
    said.lines("dvc.yaml has your changes and is kept; this version's differs by", lines)
    return ""
