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
from apr.rollouts.rollout import Rollout, Spawn, Status, Thread
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


def thread(index, parent, sampled, spawns=()):
    """A thread of a prompt of two tokens and so many sampled ones."""
    ids, mask = [0] * (2 + sampled), [False] * 2 + [True] * sampled
    return Thread(index, parent, int(parent >= 0), 2, ids, mask, [0.0] * len(ids), Status.DONE,
                  spawns=list(spawns))  # fmt: skip


def family(root, *children):
    """A rollout by the tokens that its threads sampled."""
    spawns = [Spawn(2, list(range(1, 1 + len(children))))] if children else []
    return Rollout("", [thread(0, -1, root, spawns), *(thread(i, 0, n) for i, n in enumerate(children, 1))])


SOLVED, FAILED = Judgement("done", strict=True, lenient=True), Judgement("done")


def weighted(step, reward, weight):
    policy = step.settings.model_copy(update={"reward": reward, "reward_weight": weight})
    return step._replace(settings=policy)


def test_critical_path_pays_solved_rollouts_by_what_they_sample_one_after_another(step):
    step, reward = weighted(step, "critical_path", 0.2), REWARDS["critical_path"]
    assert step.task.params.grammar.window == 64
    # 0.2 of the worth goes by s / (s + 64): s = 16 + 0; 32 + 32; 64 + max(32, 128)
    rollouts = [family(16), family(32, 32, 8), family(64, 32, 128)]
    assert [reward(rollout, SOLVED, step) for rollout in rollouts] == pytest.approx([0.96, 0.9, 0.85])
    assert [reward(rollout, FAILED, step) for rollout in rollouts] == [0.0] * 3
    assert reward(family(64), SOLVED, weighted(step, "critical_path", 0.0)) == 1.0


def test_the_bonus_of_parallel_is_gone_in_the_last_step(step):
    step, reward = weighted(step, "parallel", 0.5), REWARDS["parallel"]
    assert step.task.params.grammar.max_children == 10
    rollouts = [family(4), family(4, 1, 1), family(4, *[1] * 5), family(4, *[1] * 12)]
    given = {number: [reward(rollout, FAILED, step._replace(number=number, steps=5)) for rollout in rollouts]
             for number in range(5)}  # fmt: skip
    assert given[0] == pytest.approx([0.0, 0.1, 0.25, 0.5])
    assert given[1] == pytest.approx([0.0, 0.075, 0.1875, 0.375])
    assert given[4] == [0.0] * 4
    assert reward(rollouts[1], SOLVED, step._replace(number=2, steps=5)) == pytest.approx(1.05)
    assert reward(rollouts[1], FAILED, step._replace(number=0, steps=1)) == pytest.approx(0.1)


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
