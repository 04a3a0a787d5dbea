"""GRPO's advantage of a rollout (arXiv 2402.03300) for each of its threads alike: the paper's credit."""

from apr.training.rl.advantage import standardise
from apr.training.rl.algorithm import Group, Step


def credit(group: Group, step: Step) -> list[list[float]] | None:
    """Returns (r - mean of the group) / (standard deviation of the group + 1e-4); None where all r are
    equal."""
    if (advantages := standardise(group.rewards)) is None:
        return None
    return [[advantage] * len(rollout.threads)
            for advantage, rollout in zip(advantages, group.rollouts, strict=True)]  # fmt: skip
