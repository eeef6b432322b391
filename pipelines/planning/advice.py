"""What the rules of the plan would choose for prepared data: part of the fingerprint, shown by the data report.

A function of the data alone, as for training on a processor: the same data give the same advice on any machine.
"""

from typing import Any

from pipelines.planning.facts import Machine, facts_of
from pipelines.planning.network_size import seen_px, suggest_depth
from pipelines.planning.rules import OF_THE_MACHINE, apply

PROCESSOR = Machine(cores=2, memory_mib=16 * 1024)
UNKNOWN = {"prepare.shares"}  # of no use once data are prepared


def advise(fingerprint: dict) -> dict[str, Any]:
    """The advice to a fingerprint (`pipelines.dataset.fingerprint.summarise`).

    Its depth is for the data as prepared, and None if there is no foreground.
    """
    facts, size = facts_of(fingerprint), fingerprint["prepared"]["size"]
    empty = not fingerprint["splits"]["all"]["foreground_px"]
    choices = {} if empty else apply(facts, PROCESSOR)
    kept = {"prepare.size": size, "train.crop_px": None}
    if size is None:
        kept = {"train.crop_px": choices["train.crop_px"].value if choices else None}
        kept["train.crop_px"] = kept["train.crop_px"] or 128
    return {
        "depth": None if empty else suggest_depth(facts, seen_px(kept))[0],
        "suggestions": [
            {"key": key, "value": choice.value, "reason": choice.reason}
            for key, choice in choices.items()
            if key not in OF_THE_MACHINE | UNKNOWN and not _is_so(fingerprint["prepared"], key, choice.value)
        ],
    }


def _is_so(prepared: dict, key: str, value: Any) -> bool:
    section, _, name = key.partition(".")
    return section == "prepare" and name in prepared and prepared[name] == value
