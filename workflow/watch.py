"""What a run does, how far it is and how long it still takes: live on a terminal, else a line a minute."""

import re
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from apr.core.files import read_json
from apr.core.provenance import cost
from apr.pipeline.plan import Plan

MINUTE, TICK = 60.0, 0.25
"""Seconds between two lines, and between two looks."""
TAIL = 4096
"""Bytes at the end of a log in which its last line is looked for."""


class Watch:
    """Watches the jobs of a run, `names`, by the files that they write: a log first, a seal last."""

    def __init__(self, plan: Plan, names: Iterable[str], cores: int):
        self._cores, self._start = cores, time.time()
        self._logs = {name: Path(f"{plan.root}logs/{name}.log") for name in names}
        self._seals = {name: Path(plan.jobs[name].seal) for name in self._logs}
        self._dates = {path: date(path) for path in (*self._logs.values(), *self._seals.values())}
        recorded = read_json(path)["jobs"] if (path := Path(f"{plan.root}results/run.json")).is_file() else {}
        costs = {name: recorded.get(name, {}) | cost(log.with_suffix(".tsv"))
                 for name, log in self._logs.items()}  # fmt: skip
        self._earlier = {name: its.get("seconds") for name, its in costs.items()}
        """What a job took when it ran before, here or in the recorded run, if it did."""
        self._begun: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._over = threading.Event()

    def start(self, live: bool) -> None:
        """Shows in a thread what goes on, again and again (`live`) or once a minute, until `stop`."""
        self._thread = threading.Thread(target=self._draw if live else self._tell, daemon=True, name="watch")
        self._thread.start()

    def stop(self) -> None:
        """Ends that, and says how many jobs are done."""
        self._over.set()
        self._thread.join()
        self.look()
        took = clock(time.time() - self._start)
        print(f"apr: {len(self._ended)} of {len(self._logs)} jobs in {took}", file=sys.stderr, flush=True)

    def _tell(self) -> None:
        said = self._start
        while not self._over.wait(TICK):
            self.look()
            if time.time() - said >= MINUTE:
                said = time.time()
                print("apr: " + "; ".join(self.lines()), file=sys.stderr, flush=True)

    def _draw(self) -> None:
        with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
            over = False
            while not over:
                self.look()
                live.update(Text("\n".join(self.lines()), overflow="ellipsis", no_wrap=True), refresh=True)
                over = self._over.wait(TICK)

    def look(self) -> None:
        """Notes which jobs have begun and ended."""
        for files, times in ((self._logs, self._begun), (self._seals, self._ended)):
            for name, path in files.items():
                if name not in times and date(path) not in (None, self._dates[path]):
                    times[name] = time.time()

    def running(self) -> dict[str, float]:
        """Returns since how many seconds jobs run, by name."""
        return {name: time.time() - at for name, at in self._begun.items() if name not in self._ended}

    def left(self) -> tuple[float, bool]:
        """Returns the seconds that the jobs will still take on the cores, and whether those of all are known.

        A job takes as long as it says itself; until it does, what it took before, more or less as those that
        this run has done did.
        """
        known = {name: earlier for name in self._ended if (earlier := self._earlier[name])}
        took = sum(self._ended[name] - self._begun.get(name, self._ended[name]) for name in known)
        pace, running = (MINUTE + took) / (MINUTE + sum(known.values())), self.running()
        left, waiting = list[float](), self._earlier.keys() - self._ended.keys()
        for name in waiting:
            said = re.search(r"ETA (\d+)s", last_line(self._logs[name])) if name in running else None
            if said or (earlier := self._earlier[name]):
                left.append(float(said[1]) if said else max(0.0, earlier * pace - running.get(name, 0.0)))
        return max([sum(left) / self._cores, *left], default=0.0), len(left) == len(waiting)

    def summary(self) -> str:
        """Returns how many jobs are done, since when, and how long it still takes."""
        left, all_known = self.left()
        still = f"{'about' if all_known else 'more than'} {clock(left)} still"
        took = clock(time.time() - self._start)
        return f"{len(self._ended)} of {len(self._logs)} jobs in {took}, {still}"

    def lines(self) -> list[str]:
        """Returns the summary, and for each job that runs how far it is."""
        return [self.summary(), *(f"{name}: {last_line(self._logs[name])}" for name in self.running())]


def date(path: Path) -> float | None:
    """Returns when a file was changed, if it is there."""
    return path.stat().st_mtime if path.is_file() else None


def last_line(path: Path) -> str:
    """Returns the last line of a log that says something."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "starting"


def clock(seconds: float) -> str:
    """Returns minutes and seconds, or hours and minutes."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
