"""The plan of a project: values of params.yaml with the reason of each, what was found, and what a run will take."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Choice:
    """A value of params.yaml, and why it was taken, in one sentence without a line break."""

    value: Any
    reason: str


@dataclass
class Plan:
    """What `unetpp init` writes and prints."""

    params: dict[str, Choice] = field(default_factory=dict)  # by dotted key, in the order of params.yaml
    found: list[str] = field(default_factory=list)  # lines: what the data are
    asked: list[str] = field(default_factory=list)  # lines: what a person should confirm, with the line of params.yaml
    cost: str = ""  # one line: minutes and memory of a run


def make_plan(
    location: str,
    name: str,
    minutes: float = 30.0,
    *,
    use_gpu: bool | None = None,
    probe: bool = True,
    keep: dict[str, Any] | None = None,
) -> Plan:
    """The plan for the data at a place.

    Args:
        location: a folder, an archive, an address or s3://bucket/prefix, as ingest.location. Of data that are no
            folder of this machine the plan says how they are read, and the rest when `unetpp plan` finds them ingested.
        name: of the project; the registered model and the experiment are called so.
        minutes: that stage train may take on this machine.
        use_gpu: null takes one where there is one.
        probe: run a few training steps to tell minutes and memory; else they are counted alone.
        keep: values by dotted key that the user has set and that the plan works with.

    Raises:
        UserError: there are no images with masks that any layout fits.
    """
    del minutes, use_gpu, probe, keep  # the probe and the rules come with the next commits
    plan = Plan()
    plan.params["ingest.location"] = Choice(location, "where the data lie")
    plan.params["register.model_name"] = Choice(name, "named after the project")
    plan.params["register.experiment"] = Choice(name, "named after the project")
    return plan
