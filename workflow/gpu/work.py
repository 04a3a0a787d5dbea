"""A step of `workflow.gpu.quarter` in a process of its own."""

import faulthandler
import json
import os
from pathlib import Path
from typing import Any, NamedTuple


class Step(NamedTuple):
    name: str
    most: float
    """Seconds."""
    kept: float = 0
    """Seconds that have to be left for what follows."""
    phase: Any = ""
    """Which model is evaluated."""


class Work(NamedTuple):
    """A step in its process. `end`: when its time is up, in seconds of `time.monotonic`."""

    step: Step
    end: float
    carry: Path
    work: Path
    out: Path
    scale: str
    device: str | None
    tiny: bool
    without: list[str]
    """Of "flex" and "graphs", those that failed their tests."""

    def say(self, **figures: Any) -> None:
        """Keeps a line of figures, and prints it."""
        name = f"{self.step.name} {self.step.phase}".rstrip()
        line = json.dumps({"name": name} | figures) + "\n"
        with (self.out / "figures.jsonl").open("a") as file:
            file.write(line)
        os.write(FIGURES, line.encode())


FIGURES = 1
"""Where they are printed."""


def perform(work: Work) -> None:
    """Does a step in a process, and a group of processes, of its own."""
    global FIGURES
    os.setsid()
    FIGURES = os.dup(1)
    log = os.open(work.out / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.enable()
    try:
        from workflow.gpu import steps

        print(f"--- {work.step.name} {work.step.phase}", flush=True)
        steps.STEPS[work.step.name](steps.place_of(work))
    except Exception as error:
        work.say(error=f"{type(error).__name__}: {error}".split("\n")[0][:300])
        raise
