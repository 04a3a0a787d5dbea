"""A rollout as one row of training data: its threads one behind the other, each with its own positions."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from apr.rollouts.rollout import Rollout


class PackedRow(NamedTuple):
    """`prompt_ids` is the root's prompt; the other lists have one entry for each token behind it.

    With a root `A B | c d J e` (prompt A B, joined J) and a child `X | y z`:

        prompt_ids     A B
        completion_ids     c d J e X y z
        env_mask           1 1 0 1 0 1 1        1 = sampled, so it carries loss; stop tokens are sampled
        thread_lengths 6, 3                     hence positions 0 1 2 3 4 5 0 1 2
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    env_mask: list[int]
    logprobs: list[float]
    """Of the sampler, at the temperature sampled at; 0 where injected."""
    thread_lengths: list[int]


def pack(rollout: Rollout) -> PackedRow:
    """The packed row of a rollout. Raises `ValueError` if the root sampled nothing."""
    root = rollout.threads[0]
    if not any(root.sampled):
        raise ValueError(f"rollout {rollout.id}: the root sampled no token")
    ids = [token for thread in rollout.threads for token in thread.ids]
    return PackedRow(
        prompt_ids=ids[: root.prompt_length],
        completion_ids=ids[root.prompt_length :],
        env_mask=[int(s) for thread in rollout.threads for s in thread.sampled][root.prompt_length :],
        logprobs=[p for thread in rollout.threads for p in thread.logprobs][root.prompt_length :],
        thread_lengths=[len(thread.ids) for thread in rollout.threads],
    )


def position_ids(lengths: Iterable[int]) -> torch.Tensor:
    """Positions (T,) of threads of these lengths packed one behind the other; each starts again at 0."""
    return torch.cat([torch.arange(length) for length in lengths])
