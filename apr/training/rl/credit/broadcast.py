"""GRPO's advantage of a rollout (arXiv 2402.03300) for each of its threads alike: the paper's credit."""

import torch

from apr.training.rl.algorithm import Group, Step


def credit(group: Group, step: Step) -> list[list[float]] | None:
    """Returns (r - mean of the group) / (standard deviation of the group + 1e-4); None where all r are equal.

    In float32 and in this order of operations, the numbers are those of TRL to the last bit.
    """
    if len(set(group.rewards)) == 1:
        return None
    rewards, count = torch.tensor(group.rewards, dtype=torch.float32), torch.tensor(len(group.rewards))
    gaps = rewards - rewards.nanmean()
    deviation = ((gaps**2).nanmean() * (count / (count - 1))).sqrt()
    advantages = (gaps / (deviation + 1e-4)).tolist()
    return [[advantage] * len(rollout.threads)
            for advantage, rollout in zip(advantages, group.rollouts, strict=True)]  # fmt: skip
