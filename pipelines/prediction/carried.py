"""A model as it is sent to other processes: its files, and exactly how each process opens it."""

from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.core.files import scratch
from pipelines.prediction.opening import Asked, Opened, open_model
from unetpp.engines.engine import ENGINES
from unetpp.engines.family import Family, find_family
from unetpp.images.frame import Size
from unetpp.models.about import MODEL
from unetpp.models.listing import LISTING


@dataclass(frozen=True)
class Carried:
    """A model that every process opens in the same way, on any machine.

    Attributes:
        files: contents by path within a folder; the first file is the one that is opened.
        asked: with depth and engine named, so that no other process chooses.
        size: (height, width) of an image as the network sees it.
    """

    files: dict[str, bytes]
    asked: Asked
    size: Size

    def open(self, folder: Path, threads: int) -> Opened:
        """Open the model in this process; its files are written to `folder`."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return open_model(find_family(folder / next(iter(self.files))), self.asked, self.size, threads)


def carry(family: Family, asked: Asked, opened: Opened, size: Size) -> Carried:
    """A model that is open here, to be opened elsewhere."""
    return Carried(_files(family, opened), settle(family, asked, opened.how), size)


def settle(family: Family, asked: Asked, how: dict) -> Asked:
    """The request, with the engine and depth that were chosen filled in."""
    depth = None if family.is_export or asked.heads is not None else how["depth"]
    return replace(asked, depth=depth, engine=how["engine"], max_latency_ms=None)


def _files(family: Family, opened: Opened) -> dict[str, bytes]:
    if family.is_export:
        file = Path(str(family.model)).absolute()
        names = (f"{file.parent.name}/{file.name}", f"{file.parent.name}/{MODEL}", LISTING)
        return {name: (file.parents[1] / name).read_bytes() for name in names}
    if isinstance(family.model, Path):
        files = {MODEL: family.model.read_bytes()}
    else:
        with scratch() as folder:
            family.model.save(folder / MODEL)
            files = {MODEL: (folder / MODEL).read_bytes()}
    wanted = ENGINES[opened.how["engine"]].format
    if wanted and family.exports:
        entry = family.files[opened.how["depth"], wanted]
        files |= {f"exports/{name}": (family.exports / name).read_bytes() for name in (LISTING, entry["file"])}
    return files
