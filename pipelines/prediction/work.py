"""Which images in buckets or on a cluster are still to be predicted.

An image is done if all of its outputs are at the place, were written with the same model and options, and are newer
than the image. A record at the place names model and options; the listing gives the times. So after an interruption
the same command continues.
"""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core.sections.ingest import S3
from pipelines.prediction.addresses import Item, is_address
from pipelines.prediction.outputs import Outputs
from pipelines.storage.places import Place, open_place
from unetpp.errors import UserError
from unetpp.files import parse_json
from unetpp.models.about import About

RECORD = ".unetpp-prediction.json"
NEVER = float("-inf")


@dataclass(frozen=True)
class Work:
    """What every process that predicts a part of the images needs to know."""

    out: str
    s3: S3
    outputs: Outputs
    record: dict[str, Any]

    def place(self) -> Place:
        return open_place(self.out, self.s3, "--out")

    def check_sees(self, items: Sequence[Item]) -> None:
        """Refuse to work on a node that does not see the folders of the machine on which the command runs.

        Raises:
            UserError: the node does not see the images or the output folder.
        """
        files = [Path(item.address) for item in items if not item.etag]
        if files and not any(file.is_file() for file in files):  # a single missing file is reported when it is read
            self._blind(str(files[0].parent))
        if not is_address(self.out) and read_record(self.place()) != self.record:
            self._blind(self.out)

    def _blind(self, folder: str) -> None:
        raise UserError(
            f"{folder}: {socket.gethostname()}, a node of the cluster, does not see there what this machine sees; "
            "expected a folder that all nodes share under the same path: use such a folder, or s3://bucket/prefix"
        )


def read_record(place: Place) -> dict[str, Any] | None:
    """The model and options that wrote the outputs at a place, or None if it has no record.

    Raises:
        UserError: a damaged record.
    """
    content = place.read(RECORD)
    advice = "choose another place, or remove this file and the outputs next to it"
    return None if content is None else parse_json(content, place.name(RECORD), advice)


def plan(items: Sequence[Item], about: About, work: Work, overwrite: bool) -> list[Item]:
    """The images that are still to be predicted; writes the record if it is not there yet.

    Raises:
        UserError: existing files in the way, outputs of another model or other options, or an output that is an input.
    """
    place, former = work.place(), read_record(work.place())
    if former not in (None, work.record) and not overwrite:
        raise UserError(
            f"{place.location}: {_difference(former, work.record)}; expected outputs of the same command, which would "
            "then continue: choose another place, or use --overwrite, which replaces files of the same names"
        )
    there, read = dict(place.times()), {item.address for item in items}
    begun = there[RECORD] if former == work.record and not overwrite else None
    todo: list[Item] = []
    in_the_way: list[str] = []
    for item in items:
        ways = [False, True] if item.address.lower().endswith((".tif", ".tiff")) else [False]  # a large one gives TIFFs
        each = [[one.as_posix() for one in work.outputs.paths(about, Path(), item.stem, way)] for way in ways]
        names = list(dict.fromkeys(name for some in each for name in some))
        if same := [place.name(one) for one in names if place.name(one) in read]:
            raise UserError(f"{same[0]}: this output is also an input image: choose another place")
        if begun is None:
            in_the_way += [place.name(one) for one in names if one in there]
        elif any(all(there.get(one, NEVER) >= max(begun, item.modified) for one in some) for some in each):
            continue
        todo.append(item)
    if in_the_way and not overwrite:
        more = " and more" if len(in_the_way) > 5 else ""
        raise UserError(
            f"{', '.join(in_the_way[:5])}{more}: already exists, and was not written by this pipeline; nothing was "
            "done: choose another place, or use --overwrite, which replaces files of the same names"
        )
    if begun is None:
        place.write(RECORD, json.dumps(work.record, indent=2).encode() + b"\n")
    return todo


def _difference(former: dict[str, Any] | None, record: dict[str, Any]) -> str:
    found = former or {}
    keys = [key for key in record if found.get(key) != record[key]] or ["format"]
    return "found outputs of another model or other options: " + ", ".join(
        f"{key} {found.get(key)} instead of {record.get(key)}" for key in keys
    )
