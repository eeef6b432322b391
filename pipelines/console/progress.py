"""What a person sees of a training that runs: a line an epoch, and on a terminal one that is rewritten meanwhile."""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from pipelines.console.line_feed import append, feed

EVERY_S = 0.25  # the line that moves is rewritten so often at most


class Screen(Protocol):
    """Where lines appear; `moves` is False where none can be rewritten, as in the log of a job."""

    moves: bool

    def move(self, line: str) -> None:
        """Show a line in place of the one that was shown so before."""

    def say(self, line: str) -> None:
        """Print a line that stays."""


class Terminal:
    """Standard output of this process."""

    def __init__(self) -> None:
        self.moves = sys.stdout.isatty()

    def move(self, line: str) -> None:
        # One that is longer than the window would leave its beginning behind.
        print(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", flush=True)

    def say(self, line: str) -> None:
        print(f"\r{line}\x1b[K" if self.moves else line, flush=True)


class Relay:
    """The terminal of another process, which reads a file: see `relayed`."""

    moves = True

    def __init__(self, path: Path):
        self._path = path

    def move(self, line: str) -> None:
        self._add("move", line)

    def say(self, line: str) -> None:
        self._add("say", line)

    def _add(self, how: str, line: str) -> None:
        append(self._path, json.dumps([how, line]))


def screen_of(settings: dict[str, Any]) -> Screen:
    """Where a process shows what its training does, by what `relayed` put into its settings."""
    return Relay(Path(settings["screen"])) if settings.get("screen") else Terminal()


@contextmanager
def relayed(here: bool) -> Iterator[dict[str, str]]:
    """Show what processes of this machine write by `Relay`, as long as the block lasts.

    Their output comes through Ray, line by line and each with a name before it: no line of it can be rewritten.

    Args:
        here: whether the processes run on this machine.

    Yields:
        what is to be added to their settings; nothing where there is no terminal.
    """
    terminal = Terminal()
    if not here or not terminal.moves:
        yield {}
        return

    def show(line: str) -> None:
        how, text = json.loads(line)
        getattr(terminal, how)(text)

    with feed(show) as path:
        yield {"screen": str(path)}


class Progress:
    """Of one training, from where it begins or goes on; of several processes the first one's.

    Args:
        history: the rows of the epochs that were done before.
    """

    def __init__(self, num_epochs: int, screen: Screen, history: Sequence[dict] = ()):
        self._num_epochs, self._screen = num_epochs, screen
        self._began: tuple[float, float] | None = None  # seconds, and epochs done then
        self._row = history[-1] if history else None
        self._shown = self._epoch_began = time.monotonic()
        self._epoch = self._first = -1

    def step(self, epoch: int, number: int, sizes: Sequence[int]) -> None:
        """A step was done, the `number`th of an epoch whose steps have so many images each."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, epoch + number / len(sizes)
        if not self._screen.moves:
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
        self._screen.move(line + (f"  val IoU {describe_ious(self._row)}" if self._row else ""))

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch was done."""
        self._row = row
        self._screen.say(describe(row, self._num_epochs) + self._eta(time.monotonic(), row["epoch"]))

    def _eta(self, now: float, done: float) -> str:
        """How long the rest takes, at the speed since the first step; nothing before there is one, and at the end."""
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
