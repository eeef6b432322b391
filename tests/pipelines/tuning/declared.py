"""Searches that the tests of this wing and of the stage declare."""

from pathlib import Path

from pipelines.core.params import Params, load_params
from tests.conftest import REPOSITORY

ALL = load_params(REPOSITORY / "params.yaml")
NO_LIMIT = dict.fromkeys(("latency_ms", "macs", "parameters", "memory_mib"))


def declared(**search) -> Params:
    """params.yaml with another section search; two candidates where it names no widths."""
    values = ALL.model_dump(mode="json", by_alias=True)
    values["search"] |= {"widths": [[4, 6], [4, 6, 8]]} | search
    return Params.model_validate(values)


def arguments(prepared: Path, runs: str = "runs") -> tuple[str, ...]:
    """Of the stage."""
    return ("--prepared", str(prepared), "--runs", runs, "--out", "models/search", "--reports", "reports")
