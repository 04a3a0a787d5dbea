"""What the Snakefile calls: the plan of a run, and what happens before its first and after its last job."""

import atexit
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from apr.core.errors import AprError, ParamsError
from apr.core.files import remove
from apr.core.process import OWNER, RUNS, alive, end_with, identity, workers_of
from apr.pipeline.plan import DEFAULT_SCALE, Plan


def open_plan(config: Mapping[str, Any], job: bool = False) -> Plan:
    """The plan of the scale that `--config scale=NAME` picks, its job files written; exits on an error.

    For a `snakemake` that an executor starts for a `job`, here or on another machine, the run that submitted
    it has written them; this process ends with that run, and a run with the `apr chunk` that started it.
    """
    try:
        if unknown := sorted(set(config) - {"scale"}):
            raise ParamsError(f"--config {unknown[0]}: unknown key; allowed: scale")
        plan = Plan(str(config.get("scale", DEFAULT_SCALE)))
    except AprError as error:
        print(f"apr: error: {error}", file=sys.stderr)
        sys.exit(2)
    if owner := os.environ.get(OWNER):
        end_with(owner)
    if not job:
        recover()
        plan.write()
    return plan


def recover() -> None:
    """Clears up after runs that were killed, and sees to it that this one leaves nothing behind if it is.

    Their workers are ended, those on other machines by the removal of the run's file in `RUNS`, and
    Snakemake's locks and marks of incomplete files removed, unless a run that holds some is alive: what is
    complete has a seal. Inside `dvc repro` it ends with DVC.
    """
    RUNS.mkdir(parents=True, exist_ok=True)
    for mark in RUNS.iterdir():
        if not alive(mark.name):
            orphans = list(workers_of(mark.name))
            for orphan in orphans:
                orphan.kill()
            psutil.wait_procs(orphans)
            mark.unlink(missing_ok=True)
    if not any(RUNS.iterdir()):
        for records in (Path(".snakemake/locks"), Path(".snakemake/incomplete")):
            remove(records)
            records.mkdir()
    own = RUNS / identity()
    own.touch()
    atexit.register(own.unlink, missing_ok=True)
    os.environ[OWNER] = own.name
    if "DVC_STAGE" in os.environ:
        for process in psutil.Process().parents():
            if any(Path(part).name == "dvc" for part in process.cmdline()[:3]):
                end_with(identity(process.pid))
                break


def prune(plan: Plan) -> None:
    """Removes artefacts that the parameters no longer name, and says so."""
    for seal in plan.prune():
        print(f"apr: removed what {seal} describes: no longer in the parameters", file=sys.stderr)


def commit(scale: str) -> None:
    """Records in DVC the stages that are whole and made from parameters and code as they are now.

    Other scales are not in DVC, and inside `dvc repro` DVC itself records what was made. Raises `AprError`.
    """
    if scale != DEFAULT_SCALE or "DVC_STAGE" in os.environ or not Path(".dvc").is_dir():
        return
    plan = Plan()
    stale = {plan.nodes[name].stage: f"{name}: {reason}" for name, reason in reversed(plan.stale.items())}
    for stage, reason in stale.items():
        print(f"apr: not recorded in DVC: {stage} ({reason})", file=sys.stderr)
    whole = [stage for stage in plan.stages if stage not in stale]
    if whole:
        named = whole if stale else []  # DVC takes half a second more for each
        command = [sys.executable, "-m", "dvc", "commit", "--quiet", "--force", *named]
        if subprocess.run(command, check=False).returncode:
            raise AprError(f"`{' '.join(command[2:])}` failed, so `dvc status` is not clean")
