"""The commands of one task: each has a line in the overview, and a help page that ends with an example."""

import argparse
from collections.abc import Callable

OVERWRITE = "replace existing files of the same names; files that are read are never replaced"
VERSION = "NAME, NAME@ALIAS or NAME/VERSION"
MODEL = "folder of a trained or exported model, an .onnx file, or models:/NAME@ALIAS"


class Group:
    """Commands that belong together.

    Args:
        task: what they are for, as the overview says it.
    """

    def __init__(self, subparsers: argparse._SubParsersAction, task: str):
        self.task, self.lines, self._subparsers = task, [], subparsers

    def add(
        self, name: str, does: str, example: str, run: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        """The parser of a new command, to which its arguments are added."""
        self.lines.append((name, does))
        parser = add_parser(self._subparsers, name, does, example)
        parser.set_defaults(run=run)
        return parser


def add_parser(
    subparsers: argparse._SubParsersAction, name: str, does: str, example: str, **options
) -> argparse.ArgumentParser:
    """A command, or an action of one, whose help ends with an example."""
    look = argparse.RawDescriptionHelpFormatter
    text = f"{does[0].upper()}{does[1:]}."
    return subparsers.add_parser(
        name, description=text, epilog=f"example:\n  {example}", formatter_class=look, **options
    )


def minutes(text: str) -> float:
    if not 0 < (value := float(text)) < 1e6:
        raise argparse.ArgumentTypeError(f"expected minutes above 0, found {text}")
    return value


def depth(text: str) -> int | str:
    return text if text == "auto" else int(text.removeprefix("L"))


def above_0(text: str) -> float:
    if not 0 < (value := float(text)) < 1e9:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


def count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value
