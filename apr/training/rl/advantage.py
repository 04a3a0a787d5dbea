"""GRPO's advantages (arXiv 2402.03300) of what rollouts, or threads, are worth."""

from collections.abc import Sequence

import torch

from apr.training.rl.algorithm import Group


def standardise(values: Sequence[float]) -> list[float] | None:
    """Returns (v - mean) / (standard deviation + 1e-4) for each value; None where all are equal.

    In float32 and in this order of operations, the numbers are those of TRL to the last bit.
    """
    if len(set(values)) == 1:
        return None
    tensor, count = torch.tensor(values, dtype=torch.float32), torch.tensor(len(values))
    gaps = tensor - tensor.nanmean()
    deviation = ((gaps**2).nanmean() * (count / (count - 1))).sqrt()
    return (gaps / (deviation + 1e-4)).tolist()


def within_roles(group: Group, values: Sequence[Sequence[float]]) -> list[list[float]] | None:
    """Returns the advantage of each thread, by its value, among the threads of its role in the group: roots
    with roots, and children with those at their depth. 0 in a role whose values are all equal, None if all
    roles are so.
    """
    advantages = [[0.0] * len(rollout.threads) for rollout in group.rollouts]
    roles: dict[int, list[tuple[int, int]]] = {}
    for place, rollout in enumerate(group.rollouts):
        for thread in rollout.threads:
            roles.setdefault(thread.depth, []).append((place, thread.index))
    told = False
    for threads in roles.values():
        found = standardise([values[place][index] for place, index in threads])
        told = told or found is not None
        for (place, index), advantage in zip(threads, found or [0.0] * len(threads), strict=True):
            advantages[place][index] = advantage
    return advantages if told else None
