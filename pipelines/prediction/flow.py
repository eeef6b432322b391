"""Decoding, computing and writing at the same time: images of one size in batches, bounded in pixels."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.core.files import holding
from pipelines.prediction.outputs import Outputs, is_large, write_files, write_outputs
from unetpp.errors import FileError, UserError
from unetpp.images.decode import decode_image
from unetpp.inference.predictor import Predictor
from unetpp.inference.tiles import TILE_PX, as_batch, predict_tiled, to_own_size
from unetpp.models.about import About

BATCH_PX = 2**16  # a batch is full with so many pixels
HELD_PX = 2**25  # pixels that are decoded and wait to be computed
AHEAD = 32  # images that are decoded beforehand, where they are small
Done = tuple[Path, list[Path] | UserError]  # an image, and its files or why it has none


@dataclass(frozen=True)
class _Decoded:
    path: Path
    pixels: np.ndarray  # (H, W, C)
    seen: np.ndarray  # (1, C, h, w) float32, as the network gets it

    @property
    def px(self) -> int:
        return self.seen[0, 0].size


def write_all(
    predictor: Predictor, images: Mapping[Path, str], folder: Path, outputs: Outputs, streams: int = 1, helpers: int = 1
) -> Iterator[Done]:
    """`write_outputs` of images, by their names in the folder; each as it is done.

    Args:
        streams: batches that are computed at once.
        helpers: threads that decode, and as many that write.

    Raises:
        UserError: outputs that cannot be written; others would fail alike.
    """
    todo, waiting = iter(images), _Waiting()
    reading: deque[tuple[Path, Future[_Decoded | None]]] = deque()
    with ExitStack() as stack:
        folders = {path.parent for path in outputs.paths(predictor.about, folder, "")}
        held = {each: stack.enter_context(holding(each)) for each in folders}
        readers, computers, writers = (stack.enter_context(_pool(n)) for n in (helpers, streams, helpers))
        work = _Work(predictor, computers, writers, images, folder, outputs, held, streams + 1)
        ahead = AHEAD
        while True:
            while len(reading) < ahead and (path := next(todo, None)):
                reading.append((path, readers.submit(_decode, path, predictor.about, outputs)))
            if not reading:
                break
            path, decoded = reading.popleft()
            try:
                one = decoded.result()
            except UserError as error:
                yield path, error
                continue
            if one is None:
                yield from work.begin_large(path)
                continue
            ahead = max(helpers, min(AHEAD, HELD_PX // one.px))
            for batch in waiting.add(one):
                yield from work.begin(batch)
        for batch in waiting.rest():
            yield from work.begin(batch)
        yield from work.end()


def _decode(path: Path, about: About, outputs: Outputs) -> _Decoded | None:
    """An image as it is and as the network gets it; None of one that is cut into tiles, or too large to be held."""
    try:
        if is_large(path, outputs.limits):
            return None
        pixels = decode_image(path, about.in_channels, limits=outputs.limits)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a readable file") from None
    if max(about.frame.sides(pixels.shape) if about.frame else pixels.shape[:2]) > TILE_PX:
        return None  # it is scaled tile by tile, in the one way that has the same bits everywhere
    return _Decoded(path, pixels, as_batch([pixels], about.frame))


class _Waiting:
    """Decoded images by the size that the network sees, until they fill a batch or hold too much memory."""

    def __init__(self):
        self._batches: dict[tuple[int, ...], list[_Decoded]] = {}

    def add(self, one: _Decoded) -> list[list[_Decoded]]:
        """The batches that are to be computed now."""
        batch = self._batches.setdefault(one.seen.shape, [])
        batch.append(one)
        if len(batch) * one.px >= BATCH_PX:
            return [self._batches.pop(one.seen.shape)]
        is_much = sum(len(each) * each[0].px for each in self._batches.values()) > HELD_PX
        return self.rest() if is_much else []

    def rest(self) -> list[list[_Decoded]]:
        """All of them."""
        batches, self._batches = list(self._batches.values()), {}
        return batches


class _Work:
    """Batches that are computed, and images that are written."""

    def __init__(
        self,
        predictor: Predictor,
        computers: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
        images: Mapping[Path, str],
        folder: Path,
        outputs: Outputs,
        held: Mapping[Path, Path],
        most: int,
    ):
        self._predictor, self._computers, self._writers = predictor, computers, writers
        self._images, self._folder, self._outputs, self._held, self._most = images, folder, outputs, held, most
        self._running: deque[tuple[list[Path], Future[list[Future[list[Path]]]]]] = deque()

    def begin(self, batch: list[_Decoded]) -> Iterator[Done]:
        """Have a batch computed; where enough are in the making, after the oldest of them is done."""
        self._running.append(([one.path for one in batch], self._computers.submit(self._compute, batch)))
        yield from self.end(self._most)

    def begin_large(self, path: Path) -> Iterator[Done]:
        """Have an image computed and written that is not held as a whole."""
        self._running.append(([path], self._computers.submit(self._write_large, path)))
        yield from self.end(self._most)

    def end(self, most: int = 0) -> Iterator[Done]:
        """Wait until so many batches are left."""
        while len(self._running) > most:
            paths, computed = self._running.popleft()
            try:
                each = computed.result()
            except UserError as error:  # of the engine, about images of this size
                yield from ((path, error) for path in paths)
                continue
            for path, written in zip(paths, each, strict=True):
                try:
                    yield path, written.result()
                except FileError as error:
                    yield path, error

    def _compute(self, batch: list[_Decoded]) -> list[Future[list[Path]]]:
        # A small image that stands alone, as others do in the next call, is computed twice: torch rounds a batch of one
        # differently from all others; the other runtimes do not.
        is_alone = len(batch) == 1 and batch[0].px < BATCH_PX and self._predictor.engine.name.startswith("torch")
        doubled = batch * 2 if is_alone else batch
        probs = predict_tiled(self._predictor.engine, np.concatenate([one.seen for one in doubled]))
        return [self._writers.submit(self._write, one, probs[index]) for index, one in enumerate(batch)]

    def _write(self, one: _Decoded, probs: np.ndarray) -> list[Path]:
        own, stem = to_own_size(probs[None], one.pixels.shape[:2])[0], self._images[one.path]
        place = (self._folder, stem, self._outputs, one.path, self._held)
        return write_files(self._predictor.about, one.pixels, own, *place)

    def _write_large(self, path: Path) -> list[Future[list[Path]]]:
        written = Future[list[Path]]()
        written.set_result(write_outputs(self._predictor, path, self._folder, self._images[path], self._outputs))
        return [written]


@contextmanager
def _pool(size: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end with the block, after what they are in the middle of: files are whole or absent."""
    with ThreadPoolExecutor(size) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
