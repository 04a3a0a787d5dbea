"""1 for a solved problem, less the more tokens were sampled one after another; else 0.

Rollouts that are equally right are told apart by how well they part their work, as in ThreadWeaver.
"""

from apr.rollouts.replay import worth
from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import Judgement
from apr.training.rl.algorithm import Step


def reward(rollout: Rollout, verdict: Judgement, step: Step) -> float:
    """Returns 1 - `reward_weight` * s / (s + window) where the problem is solved, else 0.

    s are the tokens of the critical path: half the weight is lost at a window of them, never all of it.
    """
    weight, window = step.settings.reward_weight, step.task.params.grammar.window
    return worth(float(verdict.strict), rollout.usage.sequential, weight, window)
