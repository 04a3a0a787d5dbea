"""A rollout as one row of training data: its threads one behind the other, each with its own positions."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from apr.rollouts.rollout import Rollout

NOT_SCORED = -1
"""Position of what no model reads: padding, and rows without loss."""


class PackedRow(NamedTuple):
    """`prompt_ids` is the root's prompt; `positions` has an entry for each token, the other lists have one
    for each token behind the prompt.

    With a root `A B | c d J e` (prompt A B, joined J) and a child `X | y z`:

        prompt_ids     A B
        completion_ids     c d J e X y z
        mask               1 1 0 1 0 1 1        1 = sampled, so it carries loss; stop tokens are sampled
        positions      0 1 2 3 4 5 0 1 2
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    mask: list[int]
    logprobs: list[float]
    """Of the sampler, at the temperature sampled at; 0 where injected."""
    advantages: list[float]
    """Of each token's thread."""
    positions: list[int]
    """All `NOT_SCORED` where the group has no advantage; `mask` is then 0."""


def pack(rollout: Rollout, advantages: Sequence[float] | None) -> PackedRow:
    """Returns the packed row of a rollout whose threads have these advantages, None if its group has none.

    Raises `ValueError` if the root sampled nothing.
    """
    threads, start = rollout.threads, rollout.threads[0].prompt_length
    if not any(threads[0].sampled):
        raise ValueError(f"rollout {rollout.id}: the root sampled no token")
    ids = list(chain.from_iterable(thread.ids for thread in threads))
    scored, shared = advantages is not None, advantages or [0.0] * len(threads)
    return PackedRow(
        prompt_ids=ids[:start],
        completion_ids=ids[start:],
        mask=[int(s and scored) for thread in threads for s in thread.sampled][start:],
        logprobs=[p for thread in threads for p in thread.logprobs][start:],
        advantages=[a for thread, a in zip(threads, shared, strict=True) for _ in thread.ids][start:],
        positions=[n if scored else NOT_SCORED for thread in threads for n in range(len(thread.ids))],
    )
