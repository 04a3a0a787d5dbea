"""1 for a solved problem, and a bonus for each child, solved or not, that is gone in the last step.

Whether a policy goes on to spawn when nothing is paid for it any more is what this is for.
"""

from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import Judgement
from apr.training.rl.algorithm import Step


def reward(rollout: Rollout, verdict: Judgement, step: Step) -> float:
    """Returns the outcome + `reward_weight` * children / `max_children`, which counts no more than that many,
    * the share of the steps that is left: 1 in the first, 0 in the last."""
    most, left = step.task.params.grammar.max_children, 1 - step.number / max(1, step.steps - 1)
    share = min(rollout.usage.children, most) / most
    return float(verdict.strict) + step.settings.reward_weight * left * share
