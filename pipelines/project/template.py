"""The files of a new project, from the package's own dvc.yaml and params.yaml.

A wheel holds them in this folder, where setup.py puts them; in the source tree they are those of the repository.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import unetpp

HERE = Path(__file__).parent
SOURCE = HERE / "shipped" if (HERE / "shipped").is_dir() else HERE.parents[1]
LAUNCHER = "unetpp"
CODE = "code.yaml"
SIGN = "# Written by unetpp"  # first words of files by which `unetpp init` knows its own
OURS = ("pipelines/", "unetpp/")  # dependencies on code, which code.yaml replaces
IGNORED = "# what the stages make"  # start of the part of .gitignore that is not only for the source tree


def shipped(name: str) -> str:
    """The text of a file of the repository's root."""
    return (SOURCE / name).read_text(encoding="utf-8")


def plots() -> dict[str, str]:
    """The templates of `dvc plots`, by path in a project."""
    return {f".dvc/plots/{path.name}": path.read_text() for path in sorted((SOURCE / ".dvc/plots").glob("*.*"))}


def gitignore() -> str:
    text = shipped(".gitignore")
    return text[text.index(IGNORED) :]


@cache
def pipeline() -> str:
    """dvc.yaml of a project: our stages, run by the launcher, with code.yaml in place of code files."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    found = yaml.load(shipped("dvc.yaml"))
    for name, stage in found["stages"].items():
        _call_installed(name, stage.get("do", stage))
    code = CommentedMap(
        desc="hashes of the installed code, by which an upgrade makes stale exactly what it changed",
        cmd=f"./{LAUNCHER} stage code --out {CODE}",
        always_changed=True,
        outs=_flow([{CODE: {"cache": False}}]),
    )
    found["stages"].insert(0, "code", code)
    text = io.StringIO()
    yaml.dump(found, text)
    body = text.getvalue()
    body = body[body.index("stages:") :].replace("\n  ingest:", "\n\n  ingest:", 1)
    hints = "#   dvc repro          run what is out of date\n#   dvc dag            the picture"
    return f"{signature(body)}\n{hints}\n\n{body}"


def signature(body: str) -> str:
    """The first line of a project's dvc.yaml, which shows an upgrade whether the user has changed it."""
    return f"{SIGN} {unetpp.__version__}, sum {_sum(body)}: `unetpp plan` renews what is unchanged."


def is_unchanged(text: str) -> bool:
    """Whether a project's dvc.yaml is as some version of ours wrote it."""
    first = re.match(rf"{SIGN} \S+, sum ([0-9a-f]{{16}}):", text)
    start = text.find("\nstages:") + 1
    return bool(first and start and _sum(text[start:]) == first[1])


def _sum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _call_installed(name: str, stage) -> None:
    stage["cmd"] = re.sub(r"^python -m pipelines\.", f"./{LAUNCHER} stage ", stage["cmd"])
    kept = [dep for dep in stage["deps"] if not dep.startswith(OURS)]
    after = list(stage).index("deps")
    del stage["deps"]
    params = [*stage.pop("params", []), {CODE: _flow([name])}]
    stage.insert(after, "params", _flow(params))
    if kept:
        stage.insert(after, "deps", _flow(kept) if len(kept) < 4 else kept)


def _flow(values: list):
    from ruamel.yaml.comments import CommentedSeq

    found = CommentedSeq(values)
    found.fa.set_flow_style()
    return found


def files(params: str) -> Iterator[tuple[str, str]]:
    """Name and text of every file of a project; the ones that make it a project come last."""
    yield ".gitignore", gitignore()
    yield ".dvcignore", shipped(".dvcignore")
    yield LAUNCHER, (HERE / "launcher.sh").read_text(encoding="utf-8")
    yield from plots().items()
    yield "params.yaml", params
    yield "dvc.yaml", pipeline()
