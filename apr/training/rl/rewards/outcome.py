"""1 for a solved problem, else 0 (the paper's)."""

from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import Judgement
from apr.training.rl.algorithm import Step


def reward(rollout: Rollout, verdict: Judgement, step: Step) -> float:
    """Returns 1 where the strict verifier accepts the root's answer, else 0."""
    return float(verdict.strict)
