"""What the HTML pages share: templates that escape, charts as inline SVG, pictures as data URIs.

A page is one file: it fetches nothing, runs nothing but a script of ours whose hash its policy names, and the same
data give the same bytes.
"""

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pipelines.core.numbers import fixed, points, short
from unetpp.images.frame import say_size

TEMPLATES = Path(__file__).parent / "templates"
INK = "#010203"  # stands for currentColor, which matplotlib does not know
ACCENT = "#0072b2"  # Okabe and Ito's blue
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "unetpp",
    "font.size": 10.5,
    "font.family": "DejaVu Sans",
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)


def render(template: str, script: str | None = None, **values: Any) -> str:
    """A page from one of the templates; each value is escaped unless it is `Markup`.

    Args:
        script: the only script that the page may run, a file next to the templates; None: no script.
    """
    code = Markup((TEMPLATES / script).read_text(encoding="utf-8")) if script else None
    allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() if code else None
    return _environment().get_template(template).render(**values, script=code, script_sha256=allowed)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # ids and kinds come from file names, which are not trusted
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = {"short": short, "fixed": fixed, "points": points, "sides": say_size}
    environment.filters |= words
    environment.globals |= words  # to be handed to a macro
    return environment


class Chart:
    """A chart being drawn: draw on `axes`; `svg` is set after the block of `chart`."""

    def __init__(self, axes: Axes):
        self.axes = axes
        self.svg = Markup()


@contextmanager
def chart(caption_id: str, size: tuple[float, float] = (5.4, 3.4)) -> Iterator[Chart]:
    """One pair of axes, afterwards an inline SVG whose ink is the page's own text colour.

    Args:
        caption_id: id of the element that describes the chart, for screen readers.
        size: width and height in inches, which determine the relative size of the text.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": caption_id}):
        figure = Figure(figsize=size, layout="constrained")
        made = Chart(figure.add_subplot())
        yield made
        made.axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        made.axes.set_axisbelow(True)
        made.axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = (
        svg[svg.index("<svg") :].replace(INK, "currentColor").replace(ACCENT, "var(--accent)")
    )  # lighter on dark paper
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<= id=")|(?<=url\(#)|(?<=href="#)', f"{caption_id}-", svg)  # ids are the whole page's
    made.svg = Markup(svg.replace("<svg ", f'<svg role="img" aria-labelledby="{caption_id}" ', 1))


def data_uri(image: np.ndarray, kind: str = "PNG") -> str:
    """(H, W, 3) uint8 as a data URI: a PNG, or a smaller "JPEG"."""
    options: dict[str, Any] = {"optimize": True} if kind == "PNG" else {"quality": 88, "subsampling": 0}
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def indexed_uri(indices: np.ndarray, colours: tuple[tuple[int, int, int, int], ...]) -> str:
    """(H, W) uint8 indices into RGBA colours as a data URI of a PNG: some hundred bytes for a mask."""
    picture = Image.fromarray(indices)
    picture.putpalette([level for colour in colours for level in colour[:3]])
    buffer = io.BytesIO()
    transparency = bytes(colour[3] for colour in colours)
    bits = max(1, (len(colours) - 1).bit_length())
    picture.save(
        buffer, "PNG", optimize=True, transparency=transparency, bits=next(b for b in (1, 2, 4, 8) if b >= bits)
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def outline_path(inside: np.ndarray) -> str:
    """The edges between pixels inside and outside of (H, W) bool as the `d` of an SVG path, in px."""
    parts = []
    forms = ((inside[1:] != inside[:-1], "M{1} {0}h{2}"), ((inside[:, 1:] != inside[:, :-1]).T, "M{0} {1}v{2}"))
    for edges, form in forms:
        steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        lines, starts = np.nonzero(steps == 1)  # in the same order as the ends
        runs = zip(lines, starts, np.nonzero(steps == -1)[1], strict=True)
        parts += [form.format(line + 1, start, end - start) for line, start, end in runs]
    return "".join(parts)
