"""A run of Snakemake: what the Snakefile calls before its first and after its last job."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
from snakemake.logging import logger

from apr.core.errors import AprError, ParamsError
from apr.core.process import OWNER, RUNS, alive, announce, end_with, identity, runs, workers_of
from apr.pipeline.dvc import commit, why_not
from apr.pipeline.plan import DEFAULT_SCALE, Plan
from apr.pipeline.record import record
from apr.pipeline.stages import STAGES
from workflow.watch import Watch

CONFIG = {"scale": DEFAULT_SCALE, "record": "true", "first": ""}
"""Keys of `--config`. `record=false` leaves it to `apr commit` to tell DVC; all other jobs wait for
those of the stage `first`."""


class Run:
    """A run of the jobs of `plan` that are stale."""

    def __init__(self, plan: Plan, in_dvc: bool, first: str = ""):
        self.plan, self.first, self._started = plan, first, time.time()
        self._in_dvc = in_dvc and "DVC_STAGE" not in os.environ  # inside `dvc repro` DVC itself records

    def start(self, names: Iterable[str], cores: int) -> None:
        """Shows from now on how the jobs `names` get on; says, before any work, if DVC will not hear of it.

        On a terminal they are always in view, and Snakemake itself says nothing but errors.
        """
        live = sys.stderr.isatty()
        for handler in logger.handlers if live else []:
            if handler.name == "DefaultStreamHandler":
                handler.setLevel(logging.ERROR)
        self._watch = Watch(self.plan, names, cores)
        self._watch.start(live)
        if reason := why_not(self.plan):
            print(f"apr: this run will not be recorded in DVC: {reason}", file=sys.stderr)
            self._in_dvc = False

    def stop(self) -> None:
        self._watch.stop()

    def succeed(self) -> None:
        """Records what was made. That DVC cannot is no failure of a run that has made everything."""
        self.stop()
        record(self.plan, self._started)
        if self._in_dvc:
            try:
                commit(Plan(self.plan.scale))
            except AprError as error:
                print(f"apr: {error}", file=sys.stderr)


def open_run(config: Mapping[str, Any], main: bool) -> Run:
    """Plans the scale of `--config scale=NAME` and sets the environment of its jobs; exits on an error.

    In a `snakemake` that an executor starts for a job (not `main`), here or on another machine, the run that
    submitted it has written the recipes; this process ends with that run.
    """
    try:
        if unknown := sorted(set(config) - set(CONFIG)):
            raise ParamsError(f"--config {unknown[0]}: unknown key; allowed: {', '.join(CONFIG)}")
        settings = CONFIG | {key: str(value) for key, value in config.items()}
        if settings["record"] not in ("true", "false"):
            raise ParamsError(f"--config record: {settings['record']} is not allowed; allowed: true, false")
        if settings["first"] not in ("", *STAGES):
            raise ParamsError(f"--config first: {settings['first']} is not allowed; "
                              f"allowed: {', '.join(STAGES)}")
        set_environment(Path.cwd())
        plan = Plan(settings["scale"])
    except AprError as error:
        print(f"apr: error: {error}", file=sys.stderr)
        sys.exit(2)
    if owner := os.environ.get(OWNER):
        end_with(owner)
    if main:
        alone = recover()
        plan.write()
        if alone:
            plan.sweep()
    os.environ[OWNER] = identity()
    os.environ["OMP_NUM_THREADS"] = str(plan.params.engine.torch_threads)
    return Run(plan, settings["record"] == "true", settings["first"])


def set_environment(here: Path) -> None:
    """Lets jobs find this Python and the `apr` of this tree, by no word of a shell: a path may be anything.

    Raises `ParamsError` if it cannot be in a list of paths. A fixed number of threads per process: results do
    not depend on the cores of the machine.
    """
    if any(sign in str(here) for sign in (os.pathsep, "\n", "\r")):
        raise ParamsError(f"{str(here)!r}: the directory's name is not allowed; allowed: one without "
                          f"{os.pathsep!r} and line breaks")
    for name, first in (("PATH", str(Path(sys.executable).parent)), ("PYTHONPATH", str(here))):
        rest = os.environ.get(name, "").split(os.pathsep)
        os.environ[name] = os.pathsep.join([first, *(path for path in rest if path and path != first)])
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def recover() -> bool:
    """Clears up after runs that were killed, and sees to it that this one leaves nothing behind if it is.

    Their workers are ended, those on other machines by the removal of the run's file in `RUNS`, and Snakemake
    takes back its locks, unless a run is alive that may hold some. Inside `dvc repro` this process ends with
    DVC. Returns whether no other run is alive.
    """
    for name in runs():
        if not alive(name):
            orphans = list(workers_of(name))
            for orphan in orphans:
                orphan.kill()
            psutil.wait_procs(orphans)
            (RUNS / name).unlink(missing_ok=True)
    own = announce()
    alone = runs() == [own]
    if alone and any(Path(".snakemake/locks").glob("*")):
        subprocess.run([sys.executable, "-m", "snakemake", "--unlock"], check=False, capture_output=True)
    if "DVC_STAGE" in os.environ:
        for process in psutil.Process().parents():
            if any(Path(part).name == "dvc" for part in process.cmdline()[:3]):
                end_with(identity(process.pid))
                break
    return alone
