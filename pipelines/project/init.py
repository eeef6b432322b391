"""`unetpp init`: makes a folder a project, with a plan for its data. Existing files are kept.

The file that makes it a project, dvc.yaml, is written last: rerunning an interrupted command completes it.
"""

import os
import re
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from pipelines.core.files import replacing
from pipelines.core.outputs import check_outputs
from pipelines.core.params import Params, load_params, override
from pipelines.core.temporary_folders import scratch
from pipelines.ingest import ingest
from pipelines.planning.plan import Plan, make_plan
from pipelines.project import params_text, repository, said, template
from pipelines.project.sources import Data, find_data
from unetpp.errors import UserError

MINUTES = 30.0
IGNORING = (".gitignore", ".dvcignore")  # to which lines are added
NAMED = ("register.experiment", "register.model_name")


def init(
    folder: Path, data: str, name: str | None = None, minutes: float | None = None, settings: Sequence[str] = ()
) -> None:
    """Make `folder` a project for the data; print what was found, what was chosen and what to do next.

    Args:
        data: a folder, an archive, an address or s3://bucket/prefix.
        name: of the project, and of its experiment and model; None is that of the folder.
        minutes: time limit of stage train.
        settings: "section.key=value" each, a value of params.yaml that is the user's and not the plan's.

    Raises:
        UserError: files in the way, a project for other data, or data that no layout fits.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: found a file; expected a folder, or a new name for one")
    check_in_the_way(folder)
    where, own = find_data(data, folder), _read_settings(settings)
    if (folder / "params.yaml").exists():
        text, plan = _same(folder, where, name, minutes, own), None
    else:
        name = name or _name_of(folder)
        text = _first_text(where, name, minutes or MINUTES, own)
        plan = plan_for(folder, where, name, minutes or MINUTES, checked(text), own)
        text = apply(text, plan)
        checked(text)
    made = write(folder, text)
    if plan is None:
        print(f"{folder} is already a project for these data; " + (f"restored: {', '.join(made)}" if made else OK))
    else:
        shipped = params_text.entries(template.shipped("params.yaml"))
        said.plan(plan, {key: entry.value for key, entry in shipped.items()})
    said.next_commands(folder, repository.lacking(folder))


OK = "nothing changed (`unetpp plan` looks at the data again)"


def check_in_the_way(folder: Path) -> None:
    """Refuse a folder with files that have the names of a project's but are not ours.

    Raises:
        UserError: names them.
    """
    names = (name for name, _ in template.files("") if name not in IGNORING and not name.startswith(".dvc/"))
    found = [str(folder / name) for name in names if os.path.lexists(folder / name) and not _is_ours(folder / name)]
    if found:
        raise UserError(
            f"{', '.join(found)}: already exists, and was not written by `unetpp init`; nothing was done: "
            "choose another folder, or move them away"
        )


def _is_ours(path: Path) -> bool:
    try:
        return template.SIGN in path.read_text(encoding="utf-8")[:200]
    except (OSError, ValueError):
        return False


def _name_of(folder: Path) -> str:
    """The folder's name as one that MLflow takes."""
    return re.sub(r"[^\w-]+", "-", folder.resolve().name).strip("-_") or "project"


def _read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Values by dotted key of params.yaml, each as YAML reads it."""
    found = {}
    for one in settings:
        key, equals, value = one.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)+", key):
            raise UserError(f"--set: found {one!r}; expected section.key=value, such as prepare.num_classes=3")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(
                f"--set: found {one!r}, whose value is not YAML; expected a value such as {key}=3"
            ) from None
    override(load_params(template.SOURCE / "params.yaml"), found)  # unknown keys and values that are not legal
    return found


def _first_text(where: Data, name: str, minutes: float, own: dict[str, Any]) -> str:
    first = (
        f"{template.SIGN}: every value of the project. A value chosen by the plan has its reason above it, after\n"
        f"# `# plan`. Change values here and run `dvc repro`, or for one run `dvc exp run -S section.key=value`.\n"
        f"# minutes of training that the plan counted on: {minutes:g}\n\n"
    )
    text = params_text.sign(template.shipped("params.yaml"), first)
    choices = {"ingest.kind": where.kind, "ingest.location": where.location} | dict.fromkeys(NAMED, name) | own
    for key, value in choices.items():
        text = params_text.set_value(text, key, value, "")
    return text


def minutes_of(text: str) -> float:
    found = re.search(r"^# minutes of training that the plan counted on: ([0-9.e+]+)$", text, re.MULTILINE)
    return float(found[1]) if found else MINUTES


def plan_for(folder: Path, where: Data, name: str, minutes: float, base: Params, keep: dict | None = None) -> Plan:
    """The plan for data that are here, or are fetched first as by stage ingest."""
    path = where.folder
    if path is None:
        path, cache = folder / "data/raw", folder / "data/cache"
        check_outputs([path], within=True)
        print(f"fetching the data into {path}", flush=True)
        ingest(base.ingest.model_copy(update={"location": _from_here(where, folder)}), path, cache)
    print(f"looking at {path}, and timing a few training steps", flush=True)
    plan = make_plan(str(path), name, minutes, base=base, keep=keep)
    plan.found = [line for line in plan.found if "manifest.json" not in line]  # which stage ingest has written
    for key in ("ingest.kind", "ingest.location", *NAMED):  # which are as the user said
        plan.params.pop(key, None)
    return plan


def _from_here(where: Data, folder: Path) -> str:
    """The location, seen from this process."""
    if where.kind in ("s3", "http"):
        return where.location
    return os.path.realpath(folder / Path(where.location).expanduser())


def apply(text: str, plan: Plan) -> str:
    """params.yaml with the choices of a plan and their reasons."""
    for key, choice in plan.params.items():
        text = params_text.set_value(text, key, choice.value, choice.reason)
    return text


def checked(text: str) -> Params:
    """The params that a text holds.

    Raises:
        UserError: they are not legal.
    """
    with scratch() as place:
        (place / "params.yaml").write_text(text, encoding="utf-8")
        try:
            return load_params(place / "params.yaml")
        except UserError as error:
            raise UserError(str(error).replace(f"{place}/", "")) from None


def _same(folder: Path, where: Data, name: str | None, minutes: float | None, own: dict[str, Any]) -> str:
    """The text of params.yaml of an existing project for the same data."""
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    there, named = Data(values["ingest"]["kind"], values["ingest"]["location"], None), values["register"]["model_name"]
    if _from_here(there, folder) == _from_here(where, folder):
        there = where
    wanted = f"--data {where.location} --name {name or named} --minutes {minutes or minutes_of(text):g}"
    found = f"--data {there.location} --name {named} --minutes {minutes_of(text):g}"
    wanted += "".join(f" --set {key}={value}" for key, value in own.items())
    found += "".join(f" --set {key}={reduce(getitem, key.split('.'), values)}" for key in own)
    if wanted != found:
        raise UserError(
            f"{folder} is already a project, with {found}; found {wanted}: change params.yaml there and run "
            "`unetpp plan`, or choose another folder"
        )
    return text


def write(folder: Path, params: str) -> list[str]:
    """Write what is missing; returns what it was."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name in IGNORING:
        made += [name] * _add_lines(folder / name, dict(template.files(params))[name])
    made += repository.set_up(folder)
    for name, text in template.files(params):
        if name not in IGNORING and not (folder / name).exists():
            with replacing(folder / name) as partial:
                partial.write_text(text, encoding="utf-8")
                if name == template.LAUNCHER:
                    partial.chmod(0o755)
            made.append(name)
    names = [*(name for name, _ in template.files(params)), ".dvc/config", ".dvc/.gitignore"]
    repository.commit(folder, names)
    return made


def _add_lines(path: Path, text: str) -> bool:
    """Add the lines that a file of patterns lacks; return whether there were any."""
    there = path.read_text(encoding="utf-8") if path.exists() else ""
    missing = [line for line in text.splitlines() if line not in there.splitlines()]
    if not missing:
        return False
    gap = "" if not there or there.endswith("\n") else "\n"
    with replacing(path) as partial:
        partial.write_text(there + gap + "\n".join(missing) + "\n", encoding="utf-8")
    return True
