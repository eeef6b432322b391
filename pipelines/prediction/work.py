"""What is to be done of images that lie in buckets or are predicted by a cluster, and what is done already.

Done is what was written under the same place by the same model and options, after the image was last changed: a record
there says which they are, and the listing says when. So whatever was killed, the same command continues.
"""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core.data_sections import S3
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
    """What everybody who predicts a part of the images is told."""

    out: str
    s3: S3
    outputs: Outputs
    record: dict[str, Any]

    def place(self) -> Place:
        return open_place(self.out, self.s3, "--out")

    def check_sees(self, items: Sequence[Item]) -> None:
        """Refuse to work on a machine that sees other folders than the one that the command was given on.

        Raises:
            UserError: names the folder, and what to do.
        """
        files = [Path(item.address) for item in items if not item.etag]
        if files and not any(file.is_file() for file in files):  # one that is gone meanwhile is named by who reads it
            self._blind(str(files[0].parent))
        if not is_address(self.out) and read_record(self.place()) != self.record:
            self._blind(self.out)

    def _blind(self, folder: str) -> None:
        raise UserError(
            f"{folder}: {socket.gethostname()}, a node of the cluster, does not see there what this machine sees; "
            "expected a folder that all nodes share under the same path: give one, or s3://bucket/prefix"
        )


def read_record(place: Place) -> dict[str, Any] | None:
    """Which model and options wrote what lies at a place, as far as this project wrote it."""
    content = place.read(RECORD)
    advice = "give another place, or remove it with what lies beside it"
    return None if content is None else parse_json(content, place.name(RECORD), advice)


def plan(items: Sequence[Item], about: About, work: Work, overwrite: bool) -> list[Item]:
    """The images that are still to be predicted, after what is in the way was refused; the record then lies there.

    Raises:
        UserError: names what is in the way, or what wrote it.
    """
    place, former = work.place(), read_record(work.place())
    if former not in (None, work.record) and not overwrite:
        raise UserError(
            f"{place.location}: {_difference(former, work.record)}; expected what the same command wrote, which "
            "would be continued: give another place, or --overwrite, which replaces files of the same names"
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
            raise UserError(f"{same[0]}: this output is read: give another place")
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
    return "found what another model or other options wrote, " + ", ".join(
        f"{key} {found.get(key)} and not {record.get(key)}" for key in keys
    )
