"""`results/run.json`: what a run made, in how long, on which machine and versions."""

import os
import time
from pathlib import Path
from typing import Any

from apr.core.files import read_json, write_json
from apr.core.provenance import cost, provenance
from apr.pipeline.plan import Plan


def record(plan: Plan, started: float) -> None:
    """Writes the hash of every artefact's files, and seconds and memory of the job that made it.

    `last_run` is how many jobs this run did, in how long; `full_run` is the last run that did them all.
    `started`: when the run began, in seconds since the epoch.
    """
    seals = {name: Path(job.seal) for name, job in plan.jobs.items() if Path(job.seal).is_file()}
    out = Path(f"{plan.root}results/run.json")
    done = sum(seal.stat().st_mtime >= started for seal in seals.values())
    last = {"jobs": done, "wall_seconds": round(time.time() - started)}
    before = read_json(out) if out.is_file() else {}
    write_json(out, {
        "scale": plan.scale,
        **provenance(),
        "full_run": last if done == len(plan.jobs) else before.get("full_run"),
        "last_run": last,
        "jobs": {name: _outputs(seal) | cost(Path(f"{plan.root}logs/{name}.tsv"))
                 for name, seal in seals.items()},
    })  # fmt: skip


def _outputs(seal: Path) -> dict[str, Any]:
    outputs = read_json(seal)["outputs"]
    return {"outputs": {os.path.normpath(seal.parent / path): value for path, value in outputs.items()}}
