"""What was made, recorded in DVC."""

import sys
import time
from pathlib import Path

from apr.core.errors import AprError
from apr.pipeline.plan import Plan
from apr.pipeline.stages import STAGES

LOCKED = 60.0
"""Seconds to wait for another process of DVC."""


def why_not(plan: Plan) -> str | None:
    """Returns why nothing of a scale can be recorded in DVC; None if it can."""
    here = Path().resolve()
    in_git = any((folder / ".git").exists() for folder in (here, *here.parents))
    if not in_git or not (here / plan.root / ".dvc").is_dir():
        return "this is not a git repository with DVC"
    if {*"{}"} & {*str(here)}:
        return f"DVC does not work where a directory's name has braces: {here}"
    for path in (Path(f"{plan.root}{out}") for stage in STAGES.values() for out in stage.tracked):
        there = path if path.is_dir() else path.parent
        if there.resolve() != here / there:
            return f"{there} is elsewhere, at {there.resolve()}"
    return None


def commit(plan: Plan) -> None:
    """Records in DVC, which has to be there, the stages that are whole and made from parameters and
    code as they are now.

    Raises `AprError` with DVC's reason if it does not, or is busy for `LOCKED` seconds.
    """
    from dvc.lock import LockError
    from dvc.repo import Repo

    stale = {plan.jobs[name].stage: f"{name}: {reason}" for name, reason in reversed(plan.stale.items())}
    for stage, said in stale.items():
        print(f"apr: not recorded in DVC: {stage} ({said})", file=sys.stderr)
    file, until = f"{plan.root}dvc.yaml", time.monotonic() + LOCKED
    # DVC takes half a second more for each target.
    targets = [f"{file}:{stage}" for stage in STAGES if stage not in stale] if stale else [file]
    while targets:
        try:
            with Repo(plan.root or None) as repo:
                repo.commit(targets[0], force=True)
            del targets[0]
        except Exception as error:  # of any kind, as its command line says
            if not isinstance(error, LockError) or time.monotonic() > until:
                said = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise AprError(f"not recorded in DVC, so that `dvc status` is not clean: {said}") from None
