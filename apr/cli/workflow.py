"""What the Snakefile calls: the plan of a run, and what happens before its first and after its last job."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr.cli.plan import DEFAULT_SCALE, Plan
from apr.core.errors import AprError, ParamsError


def open_plan(config: Mapping[str, Any]) -> Plan:
    """The plan of the scale that `--config scale=NAME` picks, its job files written; exits on an error."""
    try:
        if unknown := sorted(set(config) - {"scale"}):
            raise ParamsError(f"--config {unknown[0]}: unknown key; allowed: scale")
        plan = Plan(str(config.get("scale", DEFAULT_SCALE)))
    except AprError as error:
        sys.exit(f"apr: error: {error}")
    plan.write()
    return plan


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
        command = [sys.executable, "-m", "dvc", "commit", "--quiet", "--force", *whole]
        if subprocess.run(command, check=False).returncode:
            raise AprError(f"`dvc commit {' '.join(whole)}` failed, so `dvc status` is not clean")
