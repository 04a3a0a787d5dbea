"""1 for a solved problem, less the longer its rollout would take on the devices that were asked for; else 0.

What a number of devices in a prompt means is learnt from this alone.
"""

from typing import cast

from apr.language import Condition
from apr.rollouts.replay import in_steps, parts_of, replay, worth
from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import Judgement
from apr.training.rl.algorithm import Step


def reward(rollout: Rollout, verdict: Judgement, step: Step) -> float:
    """Returns the `worth` of a rollout, replayed on as many devices as its prompt asks for."""
    params, devices = step.task.params, cast(Condition, step.asked).amount
    steps = replay(parts_of(rollout), in_steps(params.engine.token_cost), devices)
    return float(worth(verdict.strict, steps, step.settings.reward_weight, params.grammar.window))
