"""What `unetpp init` and `unetpp plan` print, for a terminal of 80 columns."""

import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from pipelines.core.redaction import redacted
from pipelines.planning.plan import Plan
from pipelines.project.params_text import written

WIDTH = 79


def plan(found: Plan) -> None:
    """What was found, what was chosen and why, what to confirm, and what a run will take."""
    lines("found", found.found)
    if found.params:
        print("\nchosen (params.yaml has all values)")
        for key, choice in found.params.items():
            entry(f"{key}: {shown(choice.value)}", choice.reason)
    lines("please look at", found.asked)
    if found.cost:
        lines("a run will take", [found.cost])


def entry(head: str, reason: str) -> None:
    """A value, and its reason beside it where both fit, else below."""
    if len(head) > 38:
        print(f"  {head}")
        head = ""
    wrapped = textwrap.wrap(redacted(reason), WIDTH - 42) or [""]
    for number, line in enumerate(wrapped):
        print(f"  {head if not number else '':<38}  {line}".rstrip())


def shown(value: Any) -> str:
    return redacted(written(value)) or "null"


def lines(title: str, what: list[str]) -> None:
    if what:
        print(f"\n{title}")
        for line in what:
            print(textwrap.fill(redacted(line), WIDTH, initial_indent="  ", subsequent_indent="    "))


def next_commands(folder: Path, lacking: list[str]) -> None:
    """The commands that follow, as this shell finds them."""
    bin = Path(sys.executable).parent
    beside = "" if shutil.which("dvc") == str(bin / "dvc") else f"{shlex.quote(str(bin))}/"
    enter = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    print(f"\nnext\n  {enter}{beside}dvc repro\n  {beside}unetpp report")
    if lacking:
        print(f"\nfor experiments (`dvc exp run`), once\n  {enter}{' && '.join(lacking)}")
