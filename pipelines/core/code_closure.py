"""Which files of the code decide a stage's result, and a hash of what they do.

The repository's dvc.yaml names wings, and a test holds them against `closure`; that of a project names the `stage_hash`
of each stage. The name of a training run holds `code_hash`.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What these do changes where bytes lie, what a person sees and what is logged, and no stage's result. (Of ingest the
# bytes are the result, of register the log: dvc.yaml names these wings there.)
DECIDE_NOTHING = ("core", "console", "cluster", "storage", "registry")
# Left out as well, but what it imports is not: it reads and writes checkpoints by `unetpp`.
FOLLOWED = ("storage",)
# What these wings do is the very result of these stages.
DECIDED_HERE = {"ingest": "storage", "register": "registry"}
# The packages' own files are names and switches against telemetry.
NAMES = {"pipelines/__init__.py", "unetpp/__init__.py", "unetpp/offline.py", "unetpp/threads.py"}


@cache
def closure(module: str, decide_nothing: tuple[str, ...] = DECIDE_NOTHING) -> tuple[Path, ...]:
    """The files that `module` imports, directly or by others, itself among them, relative to the code's root.

    Imports inside of functions count. Wings that decide nothing are left out.
    """
    left_out = {f"pipelines.{wing}" for wing in decide_nothing}
    followed = {f"pipelines.{wing}" for wing in FOLLOWED}
    found: dict[str, Path] = {}
    ahead = [module]
    while ahead:
        name = ahead.pop()
        wing = ".".join(name.split(".")[:2])
        if name in found or wing in left_out - followed or not (path := _file_of(name)):
            continue
        found[name] = path
        ahead += [wing] if wing.count(".") else []  # what its folder's own file imports runs as well
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Import):
                ahead += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                ahead += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(sorted(path for name, path in found.items() if ".".join(name.split(".")[:2]) not in left_out))


def decisive(stage: str) -> list[Path]:
    """The files that decide the result of a stage, by its name; of its pages templates are among them."""
    module = "pipelines.pages.__main__" if stage == "pages" else f"pipelines.{stage}"
    wings = tuple(wing for wing in DECIDE_NOTHING if wing != DECIDED_HERE.get(stage))
    code = [path for path in closure(module, wings) if path.as_posix() not in NAMES]
    beside = {one for path in code for one in (ROOT / path).parent.glob("templates/*") if one.is_file()}
    return code + sorted(path.relative_to(ROOT) for path in beside)


@cache
def code_hash(module: str) -> str:
    """sha256 over what the closure of `module` does."""
    return _hash(closure(module))


def stage_hash(stage: str) -> str:
    """The same over what decides the result of a stage."""
    return _hash(decisive(stage))


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.as_posix()}\n{_deeds(path)}\n".encode())
    return digest.hexdigest()


@cache
def _deeds(path: Path) -> str:
    """A hash that is the same for other comments, docstrings and layout of code, in all versions of Python."""
    told = _told(_without_docstrings(_tree(path))) if path.suffix == ".py" else (ROOT / path).read_bytes()
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _told(node: object) -> object:
    """A syntax tree as names and values; `ast.dump` shows empty fields too, of which each version has others."""
    if isinstance(node, ast.AST):
        fields = ((name, _told(value)) for name, value in ast.iter_fields(node) if value not in (None, []))
        return type(node).__name__, *fields
    return [_told(one) for one in node] if isinstance(node, list) else node


def _file_of(module: str) -> Path | None:
    """The file of a module of ours; None of another library, or of a name in a module."""
    if module.partition(".")[0] not in ("pipelines", "unetpp"):
        return None
    path = Path(*module.split("."))
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if (ROOT / one).is_file()), None)


def _tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_bytes())


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree
