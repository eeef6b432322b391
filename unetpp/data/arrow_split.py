"""A prepared split: one memory-mapped Arrow file of images and masks."""

from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from unetpp.data.crops import find_spots
from unetpp.data.instances import renumber, unpack
from unetpp.data.scaling import find_limits
from unetpp.errors import UserError
from unetpp.network.masks import IGNORE, find_classes

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("image", pa.large_binary()),
        ("mask", pa.large_binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int32()),
        ("image_dtype", pa.string()),
        ("limits", pa.list_(pa.float32(), 2)),  # the values that become 0 and 1, see `find_limits`
        ("mean", pa.list_(pa.float32())),  # per channel of the image scaled to [0, 1]
        ("std", pa.list_(pa.float32())),
        ("spots", pa.list_(pa.list_(pa.int32()))),  # pixels of each foreground class, see `find_spots`
    ]
)
INSTANCES = pa.field("instances", pa.binary())  # if masks number objects, see unetpp.data.instances
# Rows are kept in memory until a batch is this large. Opening a file reads a page of each batch, and waits for the disk
# each time the page is not in the page cache.
BATCH_BYTES = 128 * 2**20


class SplitWriter:
    """Write a split row by row: `with SplitWriter(path) as writer: writer.add(...)`.

    The same rows in the same order give the same bytes.

    Args:
        multilabel, background: the meaning of masks (unetpp.network.masks).
        instances: some samples have object numbers.

    Attributes:
        class_pixels: number of pixels of each class added so far, by class index; with labels, first the pixels without
            a label, then those of each label, which may overlap.
        known_pixels, ignored_pixels: number of labelled pixels, and of IGNORE pixels.
    """

    def __init__(self, path: str | Path, multilabel: bool = False, background: bool = True, instances: bool = False):
        self.path = Path(path)
        self.task = multilabel, background
        self.schema = SCHEMA.append(INSTANCES) if instances else SCHEMA
        self.class_pixels: list[int] = [0]
        self.known_pixels = self.ignored_pixels = 0

    def __enter__(self):
        self._sink = pa.OSFile(str(self.path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self.schema)
        self._begin_batch()
        return self

    def __exit__(self, *_):
        self._flush()
        self._writer.close()
        self._sink.close()

    def add(self, id: str, kind: str, image: np.ndarray, mask: np.ndarray, instances: bytes = b"") -> None:
        """Append image (H, W, C) uint8, uint16 or float32 with mask (H, W) uint8 (unetpp.network.masks).

        Args:
            instances: object numbers, packed by `unetpp.data.instances.pack`; empty if there are none.

        Raises:
            ValueError: another type, or shapes that do not match.
        """
        if image.dtype not in (np.uint8, np.uint16, np.float32) or mask.dtype != np.uint8:
            raise ValueError(
                f"{id}: expected uint8, uint16 or float32 and a uint8 mask, found {image.dtype} and {mask.dtype}"
            )
        if image.ndim != 3 or image.shape[:2] != mask.shape:
            raise ValueError(f"{id}: expected (H, W, C) and (H, W), found {image.shape} and {mask.shape}")
        height, width, channels = image.shape
        limits = find_limits(image)
        mean, std = _moments(image, limits)
        self._small.append(
            {
                "id": id,
                "kind": kind,
                "height": height,
                "width": width,
                "channels": channels,
                "image_dtype": image.dtype.name,
                "limits": limits,
                "mean": mean,
                "std": std,
                "spots": find_spots(mask, *self.task),
                "instances": instances or None,
            }
        )
        for column, array in (("image", image), ("mask", mask)):
            # The only copy of the pixels on their way to the file.
            self._large[column] += np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            self._offsets[column].append(len(self._large[column]))
        ignored = int(np.count_nonzero(mask == IGNORE))
        self.ignored_pixels += ignored
        self.known_pixels += mask.size - ignored
        self.class_pixels[0] += int(np.count_nonzero(mask == 0))
        for number, inside in find_classes(mask, self.task[0]):
            self.class_pixels += [0] * (number + 1 - len(self.class_pixels))
            self.class_pixels[number] += int(np.count_nonzero(inside))
        if sum(map(len, self._large.values())) >= BATCH_BYTES:
            self._flush()

    def _begin_batch(self) -> None:
        self._small: list[dict] = []
        self._large = {"image": bytearray(), "mask": bytearray()}
        self._offsets = {"image": [0], "mask": [0]}

    def _flush(self) -> None:
        if not self._small:
            return
        columns = []
        for field in self.schema:
            if field.name in self._large:
                offsets = pa.py_buffer(np.array(self._offsets[field.name], np.int64))
                pixels = pa.py_buffer(self._large[field.name])
                columns.append(pa.LargeBinaryArray.from_buffers(field.type, len(self._small), [None, offsets, pixels]))
            else:
                columns.append(pa.array([row[field.name] for row in self._small], field.type))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))
        self._begin_batch()


def _moments(image: np.ndarray, limits: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of an image (H, W, C), scaled to [0, 1], in float64.

    Channel by channel, because over the first two axes at once numpy takes forty times as long. Without BLAS, whose
    sums depend on the number of threads.
    """
    low, high = limits
    mean, std = [], []
    for channel in range(image.shape[2]):
        pixels = image[..., channel].astype(np.float64).reshape(-1)
        centre = pixels.mean()
        pixels -= centre
        np.square(pixels, out=pixels)
        mean.append(float((centre - low) / (high - low or 1.0)))
        std.append(float(np.sqrt(pixels.mean()) / (high - low or 1.0)))
    return mean, std


class Split:
    """A prepared split, read without a copy. It is pickled as its path, and opened again when unpickled.

    Opening reads the position of each record batch. A sample is read when it is requested, through the page cache,
    which the processes of a machine share and the system reclaims when memory is short.

    Raises:
        UserError: no such file, or not a complete Arrow file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file; expected a prepared split: run `dvc repro prepare`")
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            self._batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{self.path}: found an incomplete Arrow file ({error}); remove it and run `dvc repro prepare`"
            ) from None
        if reader.schema not in (SCHEMA, SCHEMA.append(INSTANCES)):
            raise UserError(
                f"{self.path}: found the columns {reader.schema.names}; expected {SCHEMA.names}: "
                "run `dvc repro prepare` with this version"
            )
        self._ends = list(accumulate(len(batch) for batch in self._batches))

    def __reduce__(self):
        return Split, (self.path,)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all samples, read at the first use; `id(index)` reads a single one."""
        return self._strings("id")

    @cached_property
    def kinds(self) -> list[str]:
        """The kinds of all samples, read at the first use."""
        return self._strings("kind")

    def _strings(self, column: str) -> list[str]:
        return [value for batch in self._batches for value in batch.column(column).to_pylist()]

    def _find(self, index: int) -> tuple[pa.RecordBatch, int]:
        """The record batch of a sample, and its row there."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a split of {len(self)}")
        number = bisect_right(self._ends, index)
        batch = self._batches[number]
        return batch, index - (self._ends[number] - len(batch))

    def _value(self, index: int, column: str) -> pa.Scalar:
        """The value of a sample in a column of small values."""
        batch, row = self._find(index)
        return batch.column(column)[row]

    def _pixels(self, index: int, column: str, dtype: str) -> np.ndarray:
        """A view of a sample's bytes in the file; Arrow's own access would copy a large image."""
        batch, row = self._find(index)
        array = batch.column(column)
        _, offsets, data = array.buffers()
        assert offsets is not None
        assert data is not None
        start, stop = np.frombuffer(offsets, np.int64, 2, 8 * (row + array.offset))
        return np.frombuffer(data, dtype, (stop - start) // np.dtype(dtype).itemsize, start)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) uint8, uint16 or float32 and mask (H, W) uint8: read-only views into the mapped file."""
        shape = self.shape(index)
        image = self._pixels(index, "image", self._value(index, "image_dtype").as_py())
        return image.reshape(shape), self._pixels(index, "mask", "uint8").reshape(shape[:2])

    def shape(self, index: int) -> tuple[int, int, int]:
        """(H, W, C) of a sample's image, without reading the image."""
        height, width, channels = (self._value(index, name).as_py() for name in ("height", "width", "channels"))
        return height, width, channels

    def id(self, index: int) -> str:
        """The id of a sample."""
        return self._value(index, "id").as_py()

    def limits(self, index: int) -> tuple[float, float]:
        """The values that become 0 and 1 in a sample's scaled image (`find_limits`)."""
        low, high = self._value(index, "limits").as_py()
        return low, high

    def moments(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (C,) float32 of the image's channels, scaled to [0, 1]."""
        mean, std = (np.array(self._value(index, name).as_py(), np.float32) for name in ("mean", "std"))
        return mean, std

    def instances(self, index: int) -> np.ndarray | None:
        """The object of each pixel of a sample's mask, (H, W) from 1 to 2^24 - 1, 0 for none; for labels (K, H, W).

        None if the masks do not number objects; then only connected pixels of a class are known.
        """
        batch, row = self._find(index)
        packed = batch.column("instances")[row].as_py() if INSTANCES.name in batch.schema.names else None
        return None if packed is None else renumber(unpack(packed))

    def spots(self, index: int) -> list[np.ndarray]:
        """Foreground pixels of a sample, by class (`find_spots`), without reading the mask."""
        return [places.values.to_numpy() for places in self._value(index, "spots")]
