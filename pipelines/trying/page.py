"""The page of `unetpp try`, before an image is dropped on it."""

import numpy as np
import torch

from pipelines.evaluation.depth_costs import describe_machine
from pipelines.pages.html_page import data_uri, render
from pipelines.trying.subject import Example, Subject
from unetpp.images.display import class_colour, display
from unetpp.images.pictures import SUFFIXES, Limits

THUMBNAIL_PX = 160
CHANNELS = {1: "grey or RGB", 3: "RGB or grey"}


def build_page(subject: Subject, limits: Limits) -> str:
    """The HTML page, which requests everything else from its own server."""
    about = subject.about
    kinds = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    machines = [describe_machine(torch.device(kind)) for kind in kinds]
    classes = [] if about.classes == ["1"] else about.classes
    return render(
        "try.html.j2",
        script="try.js",
        model=subject.model,
        names=subject.names,
        beside=subject.beside,
        role=subject.role,
        why=subject.why,
        classes=[(name, class_colour(number)) for number, name in enumerate(classes, int(about.background))],
        examples=[{"name": one.name, "rank": one.rank, "picture": _thumbnail(one)} for one in subject.examples],
        first=next((index for index, one in enumerate(subject.examples) if one.rank == "median"), 0),
        suffixes=SUFFIXES,
        channels=CHANNELS.get(about.in_channels, f"{about.in_channels} channels"),
        limits=limits,
        machine=", ".join(str(one["processor" if one["device"] == "cpu" else "device"]) for one in machines),
        threads=machines[0]["threads"],
    )


def _thumbnail(example: Example) -> str:
    step = -(-max(example.image.shape[:2]) // THUMBNAIL_PX)
    return data_uri(display(np.asarray(example.image[::step, ::step])), "JPEG")
