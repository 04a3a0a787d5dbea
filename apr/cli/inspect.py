"""Verbs about the pipeline as a whole: its parameters, what is stale, its clean-up, its record in DVC."""

import argparse
from io import StringIO

from ruamel.yaml import YAML

from apr.cli import workflow
from apr.cli.plan import Plan, load_scale


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


def prune(args: argparse.Namespace) -> None:
    """Remove artefacts of methods, policies and models that the parameters no longer name."""
    workflow.prune(Plan(args.scale))


def commit(args: argparse.Namespace) -> None:
    """Record in DVC the stages that are whole and made from parameters and code as they are now."""
    workflow.commit(args.scale)
