"""Rows by hand: a parent with two children, tokens written as small numbers."""

import pytest

from apr.rollouts.rollout import Rollout, Spawn, Status, Thread
from apr.training.rl.packing import NOT_SCORED, PackedRow, pack


def thread(index, parent, prompt, rest, sampled, **fields):
    """`sampled` has a 1 for each sampled id of `rest`, whose log-probability is minus its id / 10."""
    mask = [False] * len(prompt) + [bool(s) for s in sampled]
    ids = [*prompt, *rest]
    logprobs = [-token / 10 if s else 0.0 for token, s in zip(ids, mask, strict=True)]
    return Thread(index=index, parent=parent, depth=int(parent >= 0), prompt_length=len(prompt), ids=ids,
                  sampled=mask, logprobs=logprobs, status=Status.DONE, **fields)  # fmt: skip


def family():
    # root: prompt 1 2, samples 3 4, is injected 5 6, samples 7; children: prompts 11 12 and 21
    root = thread(0, -1, [1, 2], [3, 4, 5, 6, 7], [1, 1, 0, 0, 1], spawns=[Spawn(at=4, children=[1, 2])])
    first = thread(1, 0, [11, 12], [13, 14], [1, 1], spawns=[])
    second = thread(2, 0, [21], [22, 23, 24], [1, 1, 1], spawns=[])
    return Rollout(id="p/0", threads=[root, first, second])


def test_parent_and_two_children_by_hand():
    row = pack(family(), [0.5, -1.0, 0.0])
    assert row == PackedRow(
        prompt_ids=[1, 2],
        completion_ids=[3, 4, 5, 6, 7, 11, 12, 13, 14, 21, 22, 23, 24],
        mask=[1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1],
        logprobs=[-0.3, -0.4, 0.0, 0.0, -0.7, 0.0, 0.0, -1.3, -1.4, 0.0, -2.2, -2.3, -2.4],
        advantages=[0.5] * 5 + [-1.0] * 4 + [0.0] * 4,
        positions=[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 0, 1, 2, 3],
    )
    unscored = {"mask": [0] * 13, "advantages": [0.0] * 13, "positions": [NOT_SCORED] * 15}
    assert pack(family(), None) == row._replace(**unscored)


def test_a_root_that_sampled_nothing_is_a_fault():
    empty = Rollout(id="p/1", threads=[thread(0, -1, [1, 2], [], [], spawns=[])])
    with pytest.raises(ValueError, match="p/1"):
        pack(empty, [1.0])
