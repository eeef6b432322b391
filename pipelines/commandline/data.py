"""The commands that begin with a user's data: init, plan, stage and doctor."""

import argparse
from pathlib import Path

from pipelines.commandline.group import Group, minutes

STAGES = ("code", "ingest", "prepare", "pages", "search", "train", "export", "evaluate", "register")


def add(group: Group) -> None:
    example = "unetpp init pets --data /path/to/pets --minutes 3"
    one = group.add("init", "make a project for your images and masks; `dvc repro` runs it", example, _init)
    one.add_argument("folder", type=Path, help="folder of the project; files in it are kept")
    one.add_argument("--data", required=True, help="folder or archive of images and masks, http(s)://..., s3://...")
    one.add_argument("--name", help="name of the project, its model and its experiment (default: the folder's)")
    one.add_argument("--minutes", type=minutes, help="training time on this machine to plan for (default: 30)")
    what = "a value of params.yaml for the plan to work with, such as prepare.num_classes=3; may be repeated"
    one.add_argument("-S", "--set", metavar="KEY=VALUE", action="append", default=[], help=what)

    example = "unetpp plan --accept prepare.size"
    one = group.add("plan", "look at a project's data again: what a new plan would change", example, _plan)
    one.add_argument("folder", type=Path, nargs="?", default=Path(), help="folder of the project (default: this one)")
    one.add_argument("--minutes", type=minutes, help="training time to plan for (default: as planned before)")
    one.add_argument("--accept", nargs="*", metavar="KEY", help="write the changes; with keys or sections, only those")

    example = "unetpp doctor"
    group.add("doctor", "check versions, devices and set-up, and say how to fix what is wrong", example, _doctor)

    example = "unetpp stage prepare --help"
    one = group.add("stage", "run one stage, as a project's dvc.yaml does", example, _stage)
    one.add_argument("stage", choices=STAGES)
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="options of the stage; --help lists them")


def _init(arguments: argparse.Namespace) -> None:
    from pipelines.project.init import init

    init(arguments.folder, arguments.data, arguments.name, arguments.minutes, arguments.set)


def _plan(arguments: argparse.Namespace) -> None:
    from pipelines.project.renew import renew

    renew(arguments.folder, arguments.minutes, arguments.accept)


def _doctor(_arguments: argparse.Namespace) -> None:
    from pipelines.doctor import doctor

    raise SystemExit(doctor())


def _stage(arguments: argparse.Namespace) -> None:
    from pipelines.project.stage import run_stage

    run_stage(arguments.stage, arguments.words)
