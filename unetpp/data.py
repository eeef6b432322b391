"""A prepared split: one memory-mapped Arrow file of images and masks, and the manifest beside it."""

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from unetpp.errors import UserError
from unetpp.inference import find_limits

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
        ("mean", pa.list_(pa.float32())),  # of each channel of the image scaled to [0, 1]
        ("std", pa.list_(pa.float32())),
    ]
)
# Rows are kept in memory until a batch is this large; a reader maps the file and does not mind.
BATCH_BYTES = 32 * 2**20


class SplitWriter:
    """Write a split row by row: `with SplitWriter(path) as writer: writer.add(...)`.

    The same rows in the same order give the same bytes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._rows: list[dict] = []
        self._pending_bytes = 0

    def __enter__(self):
        self._sink = pa.OSFile(str(self.path), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        return self

    def __exit__(self, *_):
        self._flush()
        self._writer.close()
        self._sink.close()

    def add(self, id: str, kind: str, image: np.ndarray, mask: np.ndarray) -> None:
        """Append image (H, W, C) uint8, uint16 or finite float32 with mask (H, W) uint8 class indices, 0 = background.

        Raises:
            ValueError: another type, or shapes that do not belong together.
        """
        if image.dtype not in (np.uint8, np.uint16, np.float32) or mask.dtype != np.uint8:
            raise ValueError(
                f"{id}: expected uint8, uint16 or float32 and a uint8 mask, found {image.dtype} and {mask.dtype}"
            )
        if image.ndim != 3 or image.shape[:2] != mask.shape:
            raise ValueError(f"{id}: expected (H, W, C) and (H, W), found {image.shape} and {mask.shape}")
        height, width, channels = image.shape
        pixels, (low, high) = image.reshape(-1, channels).astype(np.float64), find_limits(image)
        self._rows.append(
            {
                "id": id,
                "kind": kind,
                "image": image.tobytes(),
                "mask": mask.tobytes(),
                "height": height,
                "width": width,
                "channels": channels,
                "image_dtype": image.dtype.name,
                "mean": ((pixels.mean(axis=0) - low) / (high - low or 1.0)).tolist(),
                "std": (pixels.std(axis=0) / (high - low or 1.0)).tolist(),
            }
        )
        self._pending_bytes += image.nbytes + mask.nbytes
        if self._pending_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=SCHEMA))
            self._rows, self._pending_bytes = [], 0


class Split:
    """A prepared split, read without a copy. Pickles as its path and opens again where it lands.

    Raises:
        UserError: no such file, or not a whole Arrow file.
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
                f"{self.path}: found no whole Arrow file ({error}); remove it and run `dvc repro prepare`"
            ) from None
        if reader.schema != SCHEMA:
            raise UserError(
                f"{self.path}: found the columns {reader.schema.names}; expected {SCHEMA.names}: "
                "run `dvc repro prepare` with this version"
            )
        self._ends = list(accumulate(len(batch) for batch in self._batches))
        self.ids = [id for batch in self._batches for id in batch.column("id").to_pylist()]
        self.kinds = [kind for batch in self._batches for kind in batch.column("kind").to_pylist()]

    def __reduce__(self):
        return Split, (self.path,)

    def __len__(self) -> int:
        return len(self.ids)

    def _find(self, index: int) -> tuple[pa.RecordBatch, int]:
        """The record batch of a sample, and its row there."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a split of {len(self)}")
        number = bisect_right(self._ends, index)
        batch = self._batches[number]
        return batch, index - (self._ends[number] - len(batch))

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) uint8, uint16 or float32 and mask (H, W) uint8: read-only views into the mapped file."""
        batch, row = self._find(index)

        def value(column: str):
            return batch.column(column)[row]

        shape = value("height").as_py(), value("width").as_py()
        image = np.frombuffer(value("image").as_buffer(), dtype=value("image_dtype").as_py())
        mask = np.frombuffer(value("mask").as_buffer(), dtype=np.uint8)
        return image.reshape(*shape, value("channels").as_py()), mask.reshape(shape)

    def moments(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (C,) float32 of the image's channels, scaled to [0, 1]."""
        batch, row = self._find(index)
        mean, std = (np.array(batch.column(name)[row].as_py(), np.float32) for name in ("mean", "std"))
        return mean, std


def read_manifest(prepared: str | Path) -> dict:
    """manifest.json of a prepared folder: size, channels, num_classes, splits and hashes.

    Raises:
        UserError: missing or not JSON.
    """
    path = Path(prepared) / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; expected a prepared folder: run `dvc repro prepare`") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); remove the folder and run `dvc repro prepare`") from None
