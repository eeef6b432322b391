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


def plan(found: Plan, shipped: dict[str, Any]) -> None:
    """Print what was found, what was chosen and why, what to check, and what a run will take."""
    lines("found", found.found)
    chosen = {key: one for key, one in found.params.items() if written(one.value) != written(shipped[key])}
    lines("chosen", [entry(key, shown(one.value), one.reason) for key, one in chosen.items()])
    print(f"  and {len(found.params) - len(chosen)} values at their defaults; params.yaml has the reason for each")
    last(found)


def last(found: Plan) -> None:
    lines("please check", found.asked)
    lines("a run will take", [found.cost] if found.cost else [])


def entry(key: str, value: str, reason: str) -> str:
    return f"{key}: {value} ({reason})" if reason else f"{key}: {value}"


def shown(value: Any) -> str:
    return redacted(written(value)) or "null"


def lines(title: str, what: list[str]) -> None:
    if what:
        print(f"\n{title}")
        for line in what:
            print(textwrap.fill(redacted(line), WIDTH, initial_indent="  ", subsequent_indent="    "))


def next_commands(folder: Path, lacking: list[str]) -> None:
    """Print the next commands, as this shell finds them."""
    bin = Path(sys.executable).parent
    beside = "" if shutil.which("dvc") == str(bin / "dvc") else f"{shlex.quote(str(bin))}/"
    enter = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    print(f"\nnext\n  {enter}{beside}dvc repro\n  {beside}unetpp report")
    if lacking:
        print(f"\nfor experiments (`dvc exp run`), once\n  {enter}{' && '.join(lacking)}")
