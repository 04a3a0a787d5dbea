"""Progress of long work: a bar with rate and ETA on a terminal, a terse line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from apr.core.ranks import rank

T = TypeVar("T")

LOG_SECONDS = 15.0


class Meter:
    """Counts `total` units of work; `note` is the figure that matters (loss, reward, accuracy).

    Of several processes that share a job the first one shows it.
    """

    def __init__(self, title: str, total: int, unit: str = "it"):
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._start = self._said = time.monotonic()
        self._bar: Progress | None = None
        self._first = rank() == 0

    def __enter__(self) -> "Meter":
        if self._first and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                       TextColumn("{task.fields[note]}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def update(self, done: int, note: str = "") -> None:
        """Sets the work done so far."""
        self.done = done
        now = time.monotonic()
        rate = done / max(now - self._start, 1e-9)
        note = f"{rate:.4g} {self.unit}/s {note}".rstrip()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self._first and (now - self._said >= LOG_SECONDS or done >= self.total):
            self._said = now
            left = (self.total - done) / rate if rate else float("inf")
            print(f"{self.title}: {done}/{self.total} {note} ETA {left:.0f}s", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def track(items: Iterable[T], title: str, total: int, unit: str = "it") -> Iterator[T]:
    """Yields `items`, showing how many of `total` are done."""
    with Meter(title, total, unit) as meter:
        for index, item in enumerate(items, start=1):
            yield item
            meter.update(index)
