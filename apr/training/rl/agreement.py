"""How far a credit agrees with the oracle's."""

from collections.abc import Sequence
from typing import NamedTuple

from apr.training.rl.algorithm import Credit, Group, Step
from apr.training.rl.credit import CREDITS


class Agreement(NamedTuple):
    """Threads that the oracle makes more or less likely, and how many of them another credit moves so."""

    threads: int = 0
    same: int = 0
    opposite: int = 0


def agreement(credit: Credit, groups: Sequence[Group], step: Step) -> dict[str, Agreement]:
    """Returns how a credit agrees in sign with the oracle, over `root` threads and over `child` threads; one
    that it leaves as it is counts as neither."""
    found = {"root": Agreement(), "child": Agreement()}
    for group in groups:
        none = [[0.0] * len(rollout.threads) for rollout in group.rollouts]
        given, exact = (each(group, step) or none for each in (credit, CREDITS["oracle"]))
        for rollout, ours, theirs in zip(group.rollouts, given, exact, strict=True):
            for thread, one, other in zip(rollout.threads, ours, theirs, strict=True):
                role = "child" if thread.depth else "root"
                signs = other != 0, one * other > 0, one * other < 0
                found[role] = Agreement(*map(sum, zip(found[role], signs, strict=True)))
    return found


def agreements(groups: Sequence[Group], step: Step) -> dict[str, float | None]:
    """Returns, by credit and role, the shares of such threads that it moves as the oracle does (`_same`), and
    against it (`_opposite`); None where the oracle moves none."""
    found: dict[str, float | None] = {}
    for name, credit in CREDITS.items():
        for role, (threads, same, opposite) in agreement(credit, groups, step).items():
            found[f"{name}_{role}_same"] = same / threads if threads else None
            found[f"{name}_{role}_opposite"] = opposite / threads if threads else None
    return found
