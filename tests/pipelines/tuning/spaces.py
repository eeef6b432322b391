"""Searches for tests: their params and the command that runs them."""

from pathlib import Path

from pipelines.core.params import Params, load_params
from tests.conftest import REPOSITORY

ALL = load_params(REPOSITORY / "params.yaml")
ARGUMENTS = ("--runs", "runs", "--out", "models/search", "--reports", "reports")


def declared(**search) -> Params:
    values = ALL.model_dump(mode="json", by_alias=True)
    values["search"] |= {"widths": [[4, 6], [4, 6, 8]]} | search
    return Params.model_validate(values)


def command(prepared: Path) -> tuple[str, ...]:
    return ("--prepared", str(prepared), *ARGUMENTS)
