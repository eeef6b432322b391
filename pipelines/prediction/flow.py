"""Decode, compute and write at the same time: batches of images of one size, bounded in pixels."""

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

BATCH_PX = 2**16  # a batch of this many pixels is full
HELD_PX = 2**25  # pixels that are decoded and wait to be computed
AHEAD = 32  # images that are decoded in advance, if they are small
Done = tuple[Path, list[Path] | UserError]  # an image, and its files or the reason why there are none


@dataclass(frozen=True)
class _Decoded:
    path: Path
    pixels: np.ndarray  # (H, W, C)
    seen: np.ndarray  # (1, C, h, w) float32, as the network sees it

    @property
    def px(self) -> int:
        return self.seen[0, 0].size


def write_all(
    predictor: Predictor, images: Mapping[Path, str], folder: Path, outputs: Outputs, streams: int = 1, helpers: int = 1
) -> Iterator[Done]:
    """`write_outputs` for many images, yielding each image when it is done.

    Args:
        images: the stem of the output files, by image.
        streams: batches that are computed at once.
        helpers: threads that decode; as many others write.

    Raises:
        UserError: outputs that cannot be written; those of other images would fail in the same way.
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
    """An image as it is and as the network sees it; None if it is cut into tiles, or too large to hold as a whole."""
    try:
        if is_large(path, outputs.limits):
            return None
        pixels = decode_image(path, about.in_channels, limits=outputs.limits)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a readable file") from None
    if max(about.frame.sides(pixels.shape) if about.frame else pixels.shape[:2]) > TILE_PX:
        return None  # scaled tile by tile, which is the only way that gives the same bits everywhere
    return _Decoded(path, pixels, as_batch([pixels], about.frame))


class _Waiting:
    """Decoded images by the size that the network sees, until they fill a batch or hold too much memory."""

    def __init__(self):
        self._batches: dict[tuple[int, ...], list[_Decoded]] = {}

    def add(self, one: _Decoded) -> list[list[_Decoded]]:
        """Add an image; returns the batches that are to be computed now."""
        batch = self._batches.setdefault(one.seen.shape, [])
        batch.append(one)
        if len(batch) * one.px >= BATCH_PX:
            return [self._batches.pop(one.seen.shape)]
        is_much = sum(len(each) * each[0].px for each in self._batches.values()) > HELD_PX
        return self.rest() if is_much else []

    def rest(self) -> list[list[_Decoded]]:
        """All images that still wait."""
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
        """Start computing a batch, then wait for the oldest ones if too many are running."""
        self._running.append(([one.path for one in batch], self._computers.submit(self._compute, batch)))
        yield from self.end(self._most)

    def begin_large(self, path: Path) -> Iterator[Done]:
        """Start computing and writing an image that is not held as a whole."""
        self._running.append(([path], self._computers.submit(self._write_large, path)))
        yield from self.end(self._most)

    def end(self, most: int = 0) -> Iterator[Done]:
        """Wait until at most this many batches are running."""
        while len(self._running) > most:
            paths, computed = self._running.popleft()
            try:
                each = computed.result()
            except UserError as error:  # the engine refuses images of this size
                yield from ((path, error) for path in paths)
                continue
            for path, written in zip(paths, each, strict=True):
                try:
                    yield path, written.result()
                except FileError as error:
                    yield path, error

    def _compute(self, batch: list[_Decoded]) -> list[Future[list[Path]]]:
        # torch rounds a batch of one image differently from larger batches; the other runtimes do not. A small image
        # that is alone is therefore computed in a batch with itself.
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
        try:
            written.set_result(write_outputs(self._predictor, path, self._folder, self._images[path], self._outputs))
        except UserError as error:  # as of a small image: a full disk ends the command, a bad image does not
            written.set_exception(error)
        return [written]


@contextmanager
def _pool(size: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end with the block, after they finish their current task: files are complete or absent."""
    with ThreadPoolExecutor(size) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
