"""What rollouts are worth on some devices: of a policy that is asked for them, and of numbers of children."""

from typing import Any

from apr.evaluation.results import Cell, Key
from apr.results.evidence import Evidence
from apr.rollouts.replay import worth

POLICY, FIXED = "devices", "apr"
"""What is asked for devices, after RL, and what for children, after SFT."""


def worths(evidence: Evidence, cell: Cell, devices: int) -> Any:
    """Returns (problems,): the reward `latency` of a cell's rollouts on so many devices."""
    weight, window = evidence.params.rl.policies[POLICY].reward_weight, evidence.params.grammar.window
    return worth(cell.strict, cell.columns[f"steps_{devices}"], weight, window).mean(axis=1)


def fixed_keys(evidence: Evidence) -> list[Key]:
    """Returns the cells of the fixed numbers of children, greedy."""
    asked = evidence.conditions(FIXED, "sft", 0.0)
    return [Key(FIXED, "sft", 0.0, number) for number in asked if number is not None]
