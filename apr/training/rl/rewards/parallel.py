"""1 for a solved problem, and a bonus for each child, solved or not, that falls to nothing.

Whether a policy goes on to spawn when nothing is paid for it any more is what this is for.
"""

from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import Judgement
from apr.training.rl.algorithm import Step


def reward(rollout: Rollout, verdict: Judgement, step: Step) -> float:
    """Returns the outcome + `reward_weight` * children / `max_children`, which counts no more than that many,
    * what is left of it: 1 in the first step, and 0 from `anneal_share` of the steps on."""
    most, annealed = step.task.params.grammar.max_children, step.settings.anneal_share * (step.steps - 1)
    left = max(0.0, 1 - step.number / max(1.0, annealed))
    share = min(rollout.usage.children, most) / most
    return float(verdict.strict) + step.settings.reward_weight * left * share
