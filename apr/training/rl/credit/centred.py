"""A rollout's advantage as in the paper's credit, but not divided by the deviation of its group (Dr. GRPO,
arXiv 2503.20783): a group that differs in little, as in its tokens alone, moves the policy by little."""

from apr.training.rl.algorithm import Group, Step

DEVIATION = 0.5
"""The largest that outcomes have, in place of the group's."""


def credit(group: Group, step: Step) -> list[list[float]] | None:
    """Returns (r - mean of the group) / 0.5, for each of a rollout's threads alike; None where all r are
    equal."""
    if len(set(group.rewards)) == 1:
        return None
    mean = sum(group.rewards) / len(group.rewards)
    return [[(reward - mean) / DEVIATION] * len(rollout.threads)
            for reward, rollout in zip(group.rewards, group.rollouts, strict=True)]  # fmt: skip
