"""What a person sees of a training run: lines of epochs, and on a terminal one that is rewritten meanwhile."""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from tqdm import tqdm

from pipelines import is_verbose

EVERY_S = 0.25  # shortest time between updates of the moving line
SILENT_S, LOGGED_S = 5, 30  # shorter work shows nothing; time between lines where none can move


T = TypeVar("T")


def watched(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, while standard error shows how many are done and the time left.

    Work of less than five seconds shows nothing. On a terminal the line is rewritten, elsewhere there is a new one
    every half minute.
    """
    yield from tqdm(items, desc=what, total=total, **_look(""))


def watched_bytes(what: str, total: int | None, done: int = 0) -> tqdm:
    """The same for downloaded bytes: a context whose `update` gets the size of each piece."""
    return tqdm(desc=what, total=total, initial=done, unit_scale=True, **_look("B"))


def _look(unit: str) -> dict[str, Any]:
    moves = sys.stderr.isatty()
    return {
        "delay": SILENT_S,
        "mininterval": EVERY_S if moves else LOGGED_S,
        "maxinterval": LOGGED_S,
        "miniters": 1,
        "leave": False,
        "bar_format": f"{{desc}}: {{n_fmt}}{unit} of {{total_fmt}}{unit}, ETA {{remaining}}",
        "file": sys.stderr if moves else _Lines(),
    }


class _Lines:
    """Standard error that is not a terminal: each state of a bar is a line."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


class Progress:
    """Progress of one training run from where it begins or resumes; of several processes, the first one's.

    Ray forwards a worker's output to the terminal line by line: no line moves.

    Args:
        history: the rows of earlier epochs.
    """

    def __init__(self, num_epochs: int, history: Sequence[dict] = ()):
        self._num_epochs, self._moves = num_epochs, sys.stdout.isatty()
        self._began: tuple[float, float] | None = None  # seconds, and epochs done then
        self._row = history[-1] if history else None
        self._shown = self._epoch_began = time.monotonic()
        self._epoch = self._first = -1
        self._kept: float | None = None  # when a line was printed that stays

    def step(self, epoch: int, number: int, sizes: Sequence[int]) -> None:
        """A step was done, the `number`th of an epoch whose steps have `sizes` images."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, epoch + number / len(sizes)
        if not self._moves:
            return
        if epoch != self._epoch:
            self._epoch, self._first, self._epoch_began = epoch, number, now
            return
        if now - self._shown < EVERY_S:
            return
        self._shown = now
        speed = sum(sizes[self._first : number]) / (now - self._epoch_began)
        line = f"epoch {epoch + 1}/{self._num_epochs}  step {number}/{len(sizes)}  {speed:.0f} images/s"
        line += self._eta(now, epoch + number / len(sizes))
        line += f"  val IoU {describe_ious(self._row)}" if self._row else ""
        # A line longer than the window would leave its beginning behind.
        print(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", flush=True)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        print(f"\r{line}\x1b[K" if self._moves else line, flush=True)

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch was done: a line for the first, the last and every half minute; for each if verbose."""
        self._row, now = row, time.monotonic()
        due = self._kept is None or now - self._kept >= LOGGED_S or row["epoch"] == self._num_epochs
        if due or is_verbose():
            self._kept = now
            self.say(describe(row, self._num_epochs) + self._eta(now, row["epoch"]))

    def _eta(self, now: float, done: float) -> str:
        """Time left, at the speed since the first step; nothing before it, and at the end."""
        if self._began is None or done <= self._began[1] or done >= self._num_epochs:
            return ""
        pace = (now - self._began[0]) / (done - self._began[1])
        return f"  ETA {timedelta(seconds=round(pace * (self._num_epochs - done)))}"


def describe_ious(row: dict[str, Any]) -> str:
    """The val IoU of each depth."""
    return "  ".join(
        f"{key.removeprefix('val_iou_')} {value:.4f}" for key, value in row.items() if key[:9] == "val_iou_L"
    )


def describe(row: dict[str, Any], num_epochs: int) -> str:
    """An epoch in one line."""
    return (
        f"epoch {row['epoch']}/{num_epochs}  loss {row['train_loss']:.4f}  val IoU {describe_ious(row)}  "
        f"{row['images_per_s']:.0f} images/s  waited for data {row['data_wait_share']:.1%}"
    )
