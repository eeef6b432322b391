"""Numbers as a person reads them, on pages and in a terminal."""

import json
from typing import Any

NOTHING = "–"  # noqa: RUF001 - shown in place of a missing number


def short(number: float | None) -> str:
    """A count in three digits: 33009 is '33.0 k'; None is a dash."""
    if number is None:
        return NOTHING
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= limit:
            value = number / limit
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{suffix}"
    return f"{number:g}"


def fixed(number: float | None, digits: int = 3) -> str:
    """A number with this many decimals; None (not measured) is a dash."""
    return NOTHING if number is None else f"{number:.{digits}f}"


def points(iou: float | None, digits: int = 1) -> str:
    """A difference of scores in points, hundredths, with its sign: -0.004 is '−0.4'; None is a dash."""
    if iou is None:
        return NOTHING
    text = f"{abs(iou) * 100:.{digits}f}"
    return text if not float(text) else f"{'−' if iou < 0 else '+'}{text}"  # noqa: RUF001 - the sign that screen readers say


def say(value: Any) -> str:
    """A searched value as params.yaml has it; a drawn number in three digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return json.dumps(value) if value is None or isinstance(value, bool | list | tuple) else str(value)
