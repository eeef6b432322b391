"""Every command in README and docs is one that the program takes: its options, modules, targets, stages and keys."""

import argparse
import contextlib
import importlib.util
import io
import re
from functools import cache
from itertools import pairwise

import pytest
import yaml
from dvc.cli.parser import DvcParserError, get_main_parser

from pipelines.cli import build_parser
from tests.conftest import REPOSITORY
from tests.docs.pages import commands, find_pages, inline_commands

PAGES = [page for page in find_pages() if page.name != "CHANGELOG.md"]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
PARAMS = yaml.safe_load((REPOSITORY / "params.yaml").read_text())


@cache
def unetpp_commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command of `unetpp`, by its name."""
    (actions,) = [one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return actions.choices


def complaint(parser: argparse.ArgumentParser, words: list[str]) -> str:
    """What a parser says against these arguments, or no word."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            parser.parse_args(words)
        except SystemExit as end:
            return said.getvalue() if end.code else ""
        except DvcParserError:
            return "DVC knows no such command or option"
    return ""


def is_key(key: str) -> bool:
    """Whether a dotted key is one of params.yaml; what is null there may hold keys of its own."""
    value = PARAMS
    for part in key.split("."):
        if value is None or value == {}:
            return True
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def wrong_keys(words: list[str]) -> list[str]:
    after = [word for before, word in pairwise(words) if before in ("-S", "--set-param", "--set")]
    return [one for one in after if not is_key(one.partition("=")[0])]


def fault(command: list[str]) -> str:
    """Why a command cannot be given as it is written, or no word."""
    program, words = command[0].rpartition("/")[2], command[1:]
    if program == "unetpp":
        return complaint(build_parser(), words) or "".join(wrong_keys(words))
    if program == "dvc":
        if said := complaint(get_main_parser(), words):
            return said
        stages = [word for word in words[1:] if not word.startswith("-")] if words[0] == "repro" else []
        return "".join(wrong_keys(words)) or "".join(one for one in stages if one.partition("@")[0] not in STAGES)
    if program == "make":
        asked = [word for word in words if "=" not in word and not word.startswith("-")]
        return "".join(one for one in asked if one not in TARGETS)
    if program in ("python", "python3") and words[:1] == ["-m"]:
        return "" if importlib.util.find_spec(words[1]) else words[1]
    if program in ("python", "python3", "pytest"):
        files = [word for word in words if word.endswith(".py") or word.startswith("tests/")]
        return "".join(one for one in files if not (REPOSITORY / one).exists())
    return ""


@by_page
def test_every_command_in_a_block_of_code_is_legal(page):
    faults = {" ".join(command): said for command in commands(page) if (said := fault(command))}
    assert faults == {}


@by_page
def test_every_command_in_a_sentence_exists_with_its_options(page):
    known, wrong = unetpp_commands(), []
    for _, name, *words in inline_commands(page, "unetpp"):
        if not name.startswith("-") and name not in known:
            wrong.append(name)
        elif name in known and name not in ("stage", "job"):
            wrong += [
                word for word in words if word.startswith("--") and word not in known[name]._option_string_actions
            ]
    wrong += [one for _, one, *_ in inline_commands(page, "make") if "=" not in one and one.strip(",") not in TARGETS]
    assert wrong == []


def test_workflows_call_targets_of_the_makefile(repository):
    called = []
    for path in (repository / ".github/workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                targets = job.get("strategy", {}).get("matrix", {}).get("target", [""])
                called += [step["run"].replace("${{ matrix.target }}", target) for target in targets if "run" in step]
    assert {"make check", "make docs", "make test-fast", "make test", "make test-nightly"} < set(called)
    assert [fault(one.replace("${{ github.ref_name }}", "v1").split()) for one in called] == [""] * len(called)


def test_the_citation_is_of_the_version_that_is_released(repository):
    cited = yaml.safe_load((repository / "CITATION.cff").read_text())["version"]
    assert f'\nversion = "{cited}"\n' in (repository / "pyproject.toml").read_text()


def test_the_page_of_commands_names_each(repository):
    text = (repository / "docs/commands.md").read_text()
    assert [name for name in unetpp_commands() if f"`{name}`" not in text or f"unetpp {name}" not in text] == []


@pytest.mark.parametrize(
    "command",
    [
        "unetpp predikt a.png --out b",
        "unetpp predict a.png --out b --deepth 2",
        "unetpp init pets --data x -S prepare.num_clases=3",
        "dvc exp run -S train.epoch=3",
        "dvc repro trian",
        "dvc repro --froce",
        "make tset",
        "python -m pipelines.trane",
        "python examples/none.py",
        "pytest -q tests/none",
    ],
)
def test_what_is_wrong_is_found(command, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"    cd x && A=1 {command}   # why\n")
    found = list(commands(page))
    assert found[0] == ["cd", "x"]
    assert [bool(fault(one)) for one in found] == [False, True]
