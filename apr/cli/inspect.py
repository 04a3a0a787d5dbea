"""Verbs about the pipeline as a whole: its parameters, what is stale, its clean-up, its record in DVC."""

import argparse
import os
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from apr.core.errors import DataError
from apr.core.files import read_json, remove
from apr.core.recipe import flat
from apr.pipeline.plan import DEFAULT_SCALE, Plan, load_scale

RECORDED = Path("results/run.json")


def params(args: argparse.Namespace) -> None:
    """Print the validated parameters of a scale, preset and defaults merged in."""
    text = StringIO()
    YAML().dump(load_scale(args.scale).model_dump(mode="json"), text)
    print(text.getvalue(), end="")


def status(args: argparse.Namespace) -> None:
    """List the artefacts that are stale, and why."""
    plan = Plan(args.scale)
    for name, reason in plan.stale.items():
        print(f"{name}: {reason}")
    print(f"{len(plan.stale)} of {len(plan.jobs)} artefacts are stale")
    if left := plan.leftovers():
        print(f"{len(left)} that the parameters no longer name are left (`apr prune`)")


def plan(args: argparse.Namespace) -> None:
    """Estimate what a scale costs, from its parameters alone: tokens, FLOPs, disk, hours by job."""
    from apr.pipeline.cost import Estimate, rates_for, report

    estimate = Estimate(load_scale(args.scale))
    recorded = args.measured or (RECORDED if RECORDED.is_file() else None)
    for line in report(estimate, rates_for(estimate, args.scale, recorded, args.rate)):
        print(line)


def why(args: argparse.Namespace) -> None:
    """Say what an artefact was made from, whether it is stale, and because of what."""
    path = Path(os.path.normpath(args.artefact))
    scale = path.parts[1] if path.parts[:1] == ("scales",) and len(path.parts) > 1 else DEFAULT_SCALE
    plan = Plan(scale)
    owners = [name for name, job in plan.jobs.items()
              if path == Path(job.seal) or any(path.is_relative_to(output) for output in job.outputs)]
    if not owners:
        known = ", ".join(sorted(output for job in plan.jobs.values() for output in job.outputs))
        raise DataError(f"{path}: no artefact of scale {scale!r}; they are {known}")
    (name,) = owners
    print(f"{name}: {'stale' if name in plan.stale else 'fresh'}")
    for other, reason in plan.because(name):
        print(f"  {other}: {reason}")
    job = plan.jobs[name]
    if not Path(job.seal).is_file():
        return
    seal = read_json(job.seal)
    sections = {
        "made by": dict(flat(seal.get("made_by", {}))),
        "parameters": dict(flat(seal["recipe"]["params"])),
        "code": seal["recipe"]["code"],
        "sft.base": seal["recipe"].get("base", {}),
        "made from": {other: plan.jobs[other].seal if other in plan.jobs else "no longer in the parameters"
                      for other in seal["recipe"]["upstream"]},
        "files": seal["outputs"],
    }  # fmt: skip
    for title, values in sections.items():
        for line in [f"{title}:", *(f"  {key}: {value}" for key, value in values.items())] if values else []:
            print(line)


def prune(args: argparse.Namespace) -> None:
    """List the artefacts of methods, policies and models that the parameters no longer name; remove them."""
    for seal, path in Plan(args.scale).leftovers().items():
        print(f"{path}: {'removed' if args.yes else 'to be removed (--yes)'}")
        if args.yes:
            remove(path)
            remove(Path(seal))


def commit(args: argparse.Namespace) -> None:
    """Record in DVC the stages that are whole and made from parameters and code as they are now.

    Says so where there is no DVC to record them in.
    """
    from apr.pipeline.dvc import commit, why_not

    plan = Plan(args.scale)
    if reason := why_not(plan):
        print(f"apr: nothing is recorded in DVC: {reason}")
    else:
        commit(plan)
