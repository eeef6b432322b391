"""The records of a plan."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Choice:
    """A value of params.yaml and the reason for it, in one sentence without a line break."""

    value: Any
    reason: str


@dataclass
class Plan:
    """What `unetpp init` writes and prints."""

    params: dict[str, Choice] = field(default_factory=dict)  # by dotted key
    found: list[str] = field(default_factory=list)  # lines: what the data are
    asked: list[str] = field(default_factory=list)  # lines: what the user should check, with the line to write
    cost: str = ""  # one line: minutes and memory of a run

    @property
    def values(self) -> dict[str, Any]:
        """The values alone, by dotted key."""
        return {key: choice.value for key, choice in self.params.items()}

    def choose(self, key: str, value: Any, reason: str) -> None:
        self.params[key] = Choice(value, reason)
