"""Rewards and credits: found by name, and by hand what they give."""

import random
from pathlib import Path
from typing import get_args

import pytest
import torch
from trl.trainer.utils import nanstd

import apr.training.rl
from apr.core.errors import ParamsError
from apr.core.params import Policy, parse_params
from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import Judgement
from apr.tasks import open_task
from apr.tasks.countdown import Problem
from apr.training.rl.algorithm import Group, Step
from apr.training.rl.credit import CREDITS
from apr.training.rl.rewards import REWARDS

ROOM = Path(apr.training.rl.__file__).parent


KINDS = [("reward", "rewards", REWARDS), ("credit", "credit", CREDITS)]


@pytest.mark.parametrize("key, folder, known", KINDS)
def test_parameters_know_all_files(params, key, folder, known):
    files = {path.stem for path in (ROOM / folder).glob("*.py")} - {"__init__"}
    assert set(known) == files == set(get_args(Policy.model_fields[key].annotation))
    values = params.model_dump()
    values["rl"]["policies"]["apr"][key] = "nothing"
    with pytest.raises(ParamsError, match=f"^params: rl.policies.apr.{key}: 'nothing' is not all") as said:
        parse_params(values)
    assert all(name in str(said.value) for name in files) and "\n" not in str(said.value)


def group(rewards, threads=1):
    rollouts = [Rollout("", [None] * threads) for _ in rewards]
    return Group(Problem("p", (1, 2), 3), rollouts, [], rewards)


@pytest.fixture
def step(params):
    return Step(0, 2, params.rl.policies["apr"], open_task(params))


def test_outcome_is_the_strict_verdict(step):
    assert REWARDS["outcome"](Rollout("", []), Judgement("done", strict=True, lenient=True), step) == 1.0
    assert REWARDS["outcome"](Rollout("", []), Judgement("done", lenient=True), step) == 0.0


def test_broadcast_is_grpos_advantage_for_every_thread(step):
    high = 0.5 / (3**-0.5 + 1e-4)
    found = CREDITS["broadcast"](group([1.0, 0.0, 0.0, 1.0], threads=3), step)
    assert found == [[pytest.approx(value, rel=1e-6)] * 3 for value in (high, -high, -high, high)]
    assert CREDITS["broadcast"](group([0.1] * 5), step) is None


@pytest.mark.parametrize("size", [2, 3, 5, 8, 16, 33])
def test_broadcast_is_trls_to_the_last_bit(step, size):
    """Of all groups of a batch at once, as `GRPOTrainer` computes it."""
    draw = random.Random(size)
    batch = [[1.0] * solved + [0.0] * (size - solved) for solved in range(1, size)]
    batch += [draw.sample(rewards, size) for rewards in batch] + [
        [draw.random() for _ in range(size)] for _ in range(40)
    ]
    rewards = torch.tensor(batch)
    gaps = rewards - torch.nanmean(rewards, dim=1, keepdim=True)
    expected = gaps / (nanstd(rewards, dim=1, keepdim=True) + 1e-4)
    found = [[threads[0] for threads in CREDITS["broadcast"](group(rewards), step)] for rewards in batch]
    assert torch.equal(torch.tensor(found), expected)
