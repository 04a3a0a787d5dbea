"""Processes that end with the process they work for."""

import atexit
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

OWNER = "APR_OWNER"
"""Environment variable: identity of the process that a verb works for."""
RUNS = Path(".snakemake/apr-runs")
"""A file per run of this directory, named by its identity; the run touches it for as long as it is alive."""
HOST = socket.gethostname()
EVERY = 0.5
"""Seconds between two looks."""
TOUCHED = 30.0
"""Seconds between two touches of a run's file."""
SILENT = 600.0
"""Seconds without one after which a run on another machine counts as dead."""


def identity(pid: int | None = None) -> str:
    """Names a process, this one by default, as no later one and none on another machine is named."""
    process = psutil.Process(pid)
    return f"{HOST}:{process.pid}:{process.create_time()}"


def alive(name: str) -> bool:
    """Returns whether the process of this identity is there, and is no zombie.

    A process of another machine cannot be seen from here: it is a run, and counts as alive while its file in
    `RUNS` is there and was touched lately. Raises `OSError` if the file system cannot tell.
    """
    host, pid, _ = name.split(":")
    try:
        if host != HOST:
            return time.time() - (RUNS / name).stat().st_mtime < SILENT
        process = psutil.Process(int(pid))
        return identity(process.pid) == name and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, psutil.NoSuchProcess):
        return False


def runs() -> list[str]:
    """Returns the identities in `RUNS`, of runs that are alive and of others; no other files."""
    found = RUNS.iterdir() if RUNS.is_dir() else ()
    return sorted(path.name for path in found if re.fullmatch(r"[^:]+:\d+:\d+(\.\d+)?", path.name))


def announce() -> str:
    """Marks this process as a run in `RUNS` until it ends; returns its identity."""
    own = RUNS / identity()
    RUNS.mkdir(parents=True, exist_ok=True)
    own.touch()
    atexit.register(own.unlink, missing_ok=True)

    def touch() -> None:
        with suppress(FileNotFoundError):  # who removes it ends what works for this run elsewhere
            while True:
                os.utime(own)
                time.sleep(TOUCHED)

    threading.Thread(target=touch, daemon=True, name="touch the run's file").start()
    return own.name


def end_with(owner: str) -> None:
    """Ends this process within `EVERY` seconds of the end of `owner`, without any clean-up."""

    def watch() -> None:
        while alive(owner):
            time.sleep(EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch the owner").start()


def work_for(owner: str) -> None:
    """Makes this process one of a pool of `owner`, with which it ends, and who alone hears of Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(owner)


def workers_of(owner: str) -> Iterator[psutil.Process]:
    """The processes that were started to work for `owner`, and theirs."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(OWNER) == owner:
                yield process
        except psutil.Error:  # it has ended, or is another user's
            continue
