"""The command line `unetpp`."""

import argparse

import unetpp
from pipelines.commandline import data, elsewhere, look, registered, use
from pipelines.commandline.group import Group
from pipelines.core.command import run_command

TASKS = {"my data": data, "look": look, "predict": use, "registry": registered, "cluster": elsewhere}


class _Parser(argparse.ArgumentParser):
    """Shows the commands by task, when asked for help and when no command is given."""

    groups: list[Group]

    def format_help(self) -> str:
        tasks = ("\n".join([one.task, *(f"  {name:<10} {does}" for name, does in one.lines)]) for one in self.groups)
        first, last = "usage: unetpp COMMAND ...", "`unetpp COMMAND --help` shows its options and an example."
        return "\n\n".join([first, "Train, measure and ship UNet++ segmentation models.", *tasks, last]) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="unetpp")
    parser.add_argument("--version", action="version", version=f"unetpp {unetpp.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=argparse.ArgumentParser)
    parser.groups = [Group(commands, task) for task in TASKS]
    for group, module in zip(parser.groups, TASKS.values(), strict=True):
        module.add(group)
    parser.set_defaults(run=lambda _arguments: parser.print_help())
    return parser


def main() -> None:
    """Entry point of `unetpp`."""
    arguments = build_parser().parse_args()
    run_command(lambda: arguments.run(arguments))


if __name__ == "__main__":
    main()
