"""Every command has help with an example that is valid, and the overview has every command."""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from pipelines import cli
from pipelines.cli import build_parser


def parsers(parser: argparse.ArgumentParser, words: str = "unetpp") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parser of every command and of every action of one, by the words that lead to it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if words != "unetpp":
        yield words, parser
    for action in below:
        for name, one in action.choices.items():
            yield from parsers(one, f"{words} {name}")


COMMANDS = dict(parsers(build_parser()))


@pytest.mark.parametrize("words", COMMANDS)
def test_the_help_of_a_command_ends_with_an_example_of_it_that_is_legal(words):
    text = COMMANDS[words].format_help()
    assert text.count("example:") == 1
    example = text.rpartition("example:\n  ")[2].strip()
    assert example.startswith(words)
    run = build_parser().parse_args(shlex.split(example)[1:]).run
    assert run is COMMANDS[" ".join(words.split()[:2])].get_default("run")


def test_the_overview_has_every_command_by_task(monkeypatch, capsys):
    for arguments in ([], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["unetpp", *arguments])
        with pytest.raises(SystemExit) if arguments else nullcontext():
            cli.main()
        text = capsys.readouterr().out
        assert re.findall(r"^\S.*$", text, re.MULTILINE)[2:-1] == ["my data", "look", "predict", "registry", "cluster"]
        listed = re.findall(r"^  (\S+) +\S", text, re.MULTILINE)
        assert listed == [words.split()[1] for words in COMMANDS if words.count(" ") == 1]
        assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    "words", ["bench m --depth 0", "bench m --size -3", "bench m --batch 0", "export --out o --depth 0"]
)
def test_a_number_that_means_nothing_is_refused_and_not_taken_for_the_default(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(words.split())
    assert "expected 1 or more" in capsys.readouterr().err
