"""Predict images while the next ones are fetched from a bucket and finished outputs are sent to one."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

from pipelines.core.files import scratch
from pipelines.prediction.addresses import CONNECTIONS, Item, Stores
from pipelines.prediction.flow import write_all
from pipelines.prediction.opening import Opened
from pipelines.prediction.work import Work
from pipelines.storage.places import Place
from pipelines.storage.s3 import ObjectError
from unetpp.errors import UserError

AHEAD = 2 * CONNECTIONS  # images that are fetched before they are needed, or sent while the next ones are predicted
Done = tuple[Item, str | None]  # an image, and the reason if it could not be predicted


def predicted(items: Iterable[Item], opened: Opened, work: Work, helpers: int = 1) -> Iterator[Done]:
    """Predict images and write the requested outputs, yielding each image when it is done.

    Args:
        helpers: as for `write_all`.

    Raises:
        UserError: a store that does not answer, or outputs that cannot be written; other images would fail as well.
    """
    place = work.place()
    going: deque[tuple[Item, Future[None]]] = deque()
    with scratch() as folder, ThreadPoolExecutor(CONNECTIONS) as pool:
        coming = _Coming(items, folder, pool, Stores(work.s3))
        try:
            out, predictor = folder / "out", opened.predictor
            for path, result in write_all(predictor, coming, out, work.outputs, opened.streams, helpers):
                item = coming.taken.pop(path)
                if isinstance(result, UserError):
                    _forget(item, path)
                    yield item, str(result).replace(str(path), item.address)
                else:
                    going.append((item, pool.submit(_send, place, out, result, item, path)))
                yield from _sent(going, AHEAD)
            yield from _sent(going, 0)
            yield from coming.failed
        finally:
            pool.shutdown(cancel_futures=True)


class _Coming(Mapping[Path, str]):
    """Image files and the stems of their outputs, fetched before they are needed."""

    def __init__(self, items: Iterable[Item], folder: Path, pool: ThreadPoolExecutor, stores: Stores):
        self._todo, self._folder, self._pool, self._stores = iter(items), folder, pool, stores
        self.taken: dict[Path, Item] = {}
        self.failed: list[Done] = []

    def __iter__(self) -> Iterator[Path]:
        numbers = count()
        fetched: deque[tuple[Item, Future[Path]]] = deque()
        while True:
            while len(fetched) < AHEAD and (item := next(self._todo, None)):
                own = self._folder / str(next(numbers))
                fetched.append((item, self._pool.submit(item.fetch, own, self._stores.of(item))))
            if not fetched:
                return
            item, path = fetched.popleft()
            try:
                self.taken[path.result()] = item
            except ObjectError as error:
                self.failed.append((item, str(error)))
            else:
                yield path.result()

    def __getitem__(self, path: Path) -> str:
        return self.taken[path].stem

    def __len__(self) -> int:
        return len(self.taken)


def _sent(going: deque[tuple[Item, Future[None]]], most: int) -> Iterator[Done]:
    """The images that are sent, in order, until at most this many are left."""
    while going and (len(going) > most or going[0][1].done()):
        item, sent = going.popleft()
        sent.result()
        yield item, None


def _send(place: Place, folder: Path, written: list[Path], item: Item, path: Path) -> None:
    for one in written:
        place.write(one.relative_to(folder).as_posix(), one)
        one.unlink()
    _forget(item, path)


def _forget(item: Item, path: Path) -> None:
    """Remove the local copy of an object, never a file of the user's."""
    if item.etag:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
