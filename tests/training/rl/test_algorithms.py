"""Rewards and credits: found by name, and by hand what they give."""

import random
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import nanstd

import apr.training.rl
from apr.core.errors import ParamsError
from apr.core.params import Policy, parse_params
from apr.language import Condition
from apr.rollouts.rollout import Rollout, Spawn, Status, Thread
from apr.rollouts.verdict import Judgement, judge, label_children
from apr.tasks import open_task
from apr.tasks.countdown import Problem
from apr.tasks.task import Label
from apr.training.rl.agreement import Agreement, agreement, agreements
from apr.training.rl.algorithm import Group, Step
from apr.training.rl.credit import CREDITS
from apr.training.rl.credit.difference import differences
from apr.training.rl.packing import pack
from apr.training.rl.rewards import REWARDS
from tests.tasks.test_toy import VALUES

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


def test_latency_pays_solved_rollouts_by_their_time_on_the_devices_asked_for(step):
    step, reward = weighted(step, "latency", 1.0), REWARDS["latency"]
    assert (step.task.params.grammar.window, step.task.params.engine.token_cost) == (64, 0.5)
    # the root reads two tokens and spawns in its first step, 1.5; then it samples 32 tokens. Its children:
    # on one device a first step of two threads that read two tokens each, 2.5; 7 of both, 24 of the longer
    times = {1: 1.5 + (2.5 + 7 * 1.5 + 24) + 32, 4: 1.5 + (1.5 + 31) + 32}
    for devices, time in times.items():
        told = step._replace(asked=Condition("devices", devices))
        assert reward(family(32, 32, 8), SOLVED, told) == pytest.approx(1 - time / (time + 64))
        assert reward(family(32, 32, 8), FAILED, told) == 0.0
    half = weighted(step, "latency", 0.5)._replace(asked=Condition("devices", 1))
    assert reward(family(65), SOLVED, half) == pytest.approx(1 - 0.5 * 65.5 / (65.5 + 64))


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


def test_the_bonus_of_parallel_may_be_gone_sooner(step):
    step, reward = weighted(step, "parallel", 0.5), REWARDS["parallel"]
    for share, expected in ((0.5, [0.5, 0.25, 0.0, 0.0, 0.0]), (0.0, [0.5, 0.0, 0.0, 0.0, 0.0])):
        policy = step.settings.model_copy(update={"anneal_share": share})
        given = [reward(family(4, *[1] * 10), FAILED, step._replace(number=number, steps=5, settings=policy))
                 for number in range(5)]  # fmt: skip
        assert given == pytest.approx(expected)


def test_broadcast_is_grpos_advantage_for_every_thread(step):
    high = 0.5 / (3**-0.5 + 1e-4)
    found = CREDITS["broadcast"](group([1.0, 0.0, 0.0, 1.0], threads=3), step)
    assert found == [[pytest.approx(value, rel=1e-6)] * 3 for value in (high, -high, -high, high)]
    assert CREDITS["broadcast"](group([0.1] * 5), step) is None


def test_centred_advantages_are_as_small_as_what_rewards_differ_in(step):
    found = CREDITS["centred"](group([1.0, 0.0, 0.0, 1.0], threads=3), step)
    assert found == [[1.0] * 3, [-1.0] * 3, [-1.0] * 3, [1.0] * 3]
    near = CREDITS["centred"](group([0.96, 1.0], threads=2), step)
    assert near == [pytest.approx([-0.04] * 2), pytest.approx([0.04] * 2)]
    assert CREDITS["centred"](group([0.1] * 5), step) is None


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


def tree(language, root, *children):
    """A rollout of texts, whose parts between bars are injected and sampled in turn; one spawn at most."""
    spawned = list(range(1, len(children) + 1))
    threads = []
    for index, text in enumerate((root, *children)):
        parts = [language.vocabulary.encode(part) for part in text.split("|")]
        ids = [token for part in parts for token in part]
        sampled = [bool(place % 2) for place, part in enumerate(parts) for _ in part]
        spawns = [Spawn(len(parts[0]) + len(parts[1]), spawned)] if children and not index else []
        threads.append(Thread(index, min(index, 1) - 1, min(index, 1), len(parts[0]), ids, sampled,
                              [0.0] * len(ids), Status.DONE, spawns=spawns))  # fmt: skip
    return Rollout("", threads)


SUM, EIGHT, TWO = "2 + 2 = 4 4", "4 * 2 = 8 2", "4 - 2 = 2 2"
BY_SUM, BY_EIGHT = "2 + 2 = 4 , 4 * 4 = 16", "4 * 2 = 8 , 8 * 2 = 16"


def asks(language, children, answer):
    """A rollout for 2 2 4 -> 16 that asks children, of whom some return something."""
    messages = " ".join(f"#{len(children) - place} {state}" for place, (state, _) in enumerate(children))
    joined = " ".join(f"joined {returned}" for _, returned in children)
    spawn = f"spawn 16 :1 {messages} run | {joined} resume |" if children else ""
    root = f"<root> 16 :0 2 2 4 go | {spawn} answer {answer} end"
    return tree(language, root, *(f"<child> 16 :1 {state} go | join {returned} end"
                                  for state, returned in children))  # fmt: skip


@pytest.fixture
def asked(params, language):
    """A group of five, and the step that it is of; the words are those of three numbers."""
    problem = Problem("p", (2, 2, 4), 16)
    values = params.model_dump()
    values["problems"]["numbers"] = 3
    task = open_task(parse_params(values))
    rollouts = [
        asks(task.language, [(SUM, BY_SUM), (TWO, "none")], BY_SUM),
        asks(task.language, [(SUM, "none"), (TWO, "none")], "none"),
        asks(task.language, [(EIGHT, BY_EIGHT), (TWO, "4 - 2 = 2 , 2 * 2 = 16")], BY_EIGHT),
        asks(task.language, [], "none"),
        asks(task.language, [(SUM, BY_SUM), (EIGHT, BY_EIGHT)], BY_EIGHT),
    ]
    verdicts = [judge(task, problem, rollout) for rollout in rollouts]
    rewards = [float(verdict.strict) for verdict in verdicts]
    assert rewards == [1.0, 0.0, 1.0, 0.0, 1.0]
    return Group(problem, rollouts, verdicts, rewards), Step(0, 2, params.rl.policies["apr"], task)


def by_role(values):
    """Advantages of values, the root's first, in plain arithmetic; roots and children apart."""
    roots, children = [own[0] for own in values], [value for own in values for value in own[1:]]

    def gap(value, among):
        return (value - fmean(among)) / (stdev(among) + 1e-4)

    return [[pytest.approx(gap(value, children if place else roots), rel=1e-5, abs=1e-6)
             for place, value in enumerate(own)] for own in values]  # fmt: skip


BY_HAND = {
    "own": [[1, 1, 1], [0, 0, 1], [1, 1, 0], [0], [1, 1, 1]],
    "difference": [[1, 1, 0], [0, 0, 0], [1, 1, 0], [0], [1, 0, 0]],
    "oracle": [[1.5, 1, 1], [0.5, 0, 1], [1.5, 1, 0], [0], [2, 1, 1]],
}
"""What the threads of each rollout are worth: of the group in `asked`."""


@pytest.mark.parametrize("credit", BY_HAND)
def test_a_credit_by_hand(asked, credit):
    expected = by_role(BY_HAND[credit])
    if credit == "difference":  # a child's is its advantage as it is
        expected = [[root, *given_[1:]] for (root, *_), given_ in zip(expected, BY_HAND[credit], strict=True)]
    assert CREDITS[credit](*asked) == expected


LOST = "none"


@pytest.fixture
def nested(params):
    """A rollout of 1 2 4 4 -> 10 whose children spawn, and one in which who solves it says "none"."""
    values = params.model_dump()
    values["problems"]["numbers"] = 4
    problem, task = Problem("p", (1, 2, 4, 4), 10), open_task(parse_params(values))
    sums, found = ("2 * 1 = 2 4 4", "4 + 1 = 5 2 4"), "4 + 1 = 5 , 4 - 2 = 2 , 5 * 2 = 10"
    below = (("4 / 4 = 1 2", "4 - 2 = 2 4"), ("4 - 2 = 2 5", "5 * 2 = 10 4"))

    def asks(path, states, returned):
        counted = " ".join(f"#{2 - place} {state}" for place, state in enumerate(states))
        return f"spawn {path} {counted} run | joined {returned[0]} joined {returned[1]} resume |"

    def rollout(said):
        texts = [f"<root> 10 :0 1 2 4 4 go | {asks('10 :1', sums, (LOST, said))} answer {said} end"]
        for state, states, first in zip(sums, below, (LOST, said), strict=True):
            spawn = asks(f"10 :1 {state} :2", states, (first, LOST))
            texts.append(f"<child> 10 :1 {state} go | {spawn} join {first} end")
        texts += [f"<child> 10 :1 {state} :2 {own} go | join {said if own == '4 - 2 = 2 5' else LOST} end"
                  for state, states in zip(sums, below, strict=True) for own in states]  # fmt: skip
        whole = tree(task.language, *texts)
        for index, thread in enumerate(whole.threads[1:], 1):
            thread.parent = (index - 1) // 2
            thread.depth = 1 + (index > 2)
        for parent, thread in enumerate(whole.threads[:3]):
            at = thread.ids.index(task.language.syntax.run) + 1
            thread.spawns = [Spawn(at, [2 * parent + 1, 2 * parent + 2])]
        return whole

    rollouts = [rollout(found), rollout(LOST)]
    verdicts = [judge(task, problem, rollout) for rollout in rollouts]
    assert [verdict.strict for verdict in verdicts] == [True, False]
    assert rollouts[0].usage.depth == 2 and rollouts[0].usage.children == 6
    return Group(problem, rollouts, verdicts, [1.0, 0.0]), Step(0, 2, params.rl.policies["apr"], task)


def test_credits_of_nested_threads_by_hand(nested):
    """2 4 4 makes 10, which the first child does not find: it asks for 1 2 and for 2 4, which do not. Of the
    second's children 2 5 does and 10 4 does not, as both say; in the other rollout 2 5 says "none"."""
    labels = [list(label_children(nested[1].task, nested[0].problem, rollout).values())
              for rollout in nested[0].rollouts]  # fmt: skip
    assert [[label.worth for label in own] for own in labels] == [[1, 1, 0, 0, 1, 0]] * 2
    assert [[label.right for label in own] for own in labels] == [[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1]]
    one = 0.5 / (0.5**0.5 + 1e-4)  # of 1 and 0: mean 1/2, deviation sqrt(1/2)
    # Children 0 1 0 0: mean 1/4, deviation sqrt(3/4 / 3). Theirs, seven times 1 and 0: 7/8, sqrt(7/8 / 7).
    child = [gap / (0.5 + 1e-4) for gap in (-0.25, 0.75)]
    below = [gap / (0.125**0.5 + 1e-4) for gap in (-0.875, 0.125)]
    # For the oracle those are worth 0 3/2 0 1/2: mean 1/2, deviation sqrt(3/2 / 3); the roots 2 and 1.
    asking = [gap / (0.5**0.5 + 1e-4) for gap in (-0.5, 1.0, -0.5, 0.0)]
    found, lost = [below[1]] * 4, [below[1], below[1], below[0], below[1]]
    expected = {
        "broadcast": [[one] * 7, [-one] * 7],
        "own": [[one, child[0], child[1], *found], [-one, child[0], child[0], *lost]],
        "difference": [[one, 0, 1, 0, 0, 1, 0], [-one, *[0] * 6]],
        "oracle": [[one, *asking[:2], *found], [-one, *asking[2:], *lost]],
    }
    for name, lists in expected.items():
        assert CREDITS[name](*nested) == [pytest.approx(own, rel=1e-5, abs=1e-6) for own in lists], name
    row = pack(nested[0].rollouts[0], expected["own"][0])
    threads = nested[0].rollouts[0].threads
    assert row.positions == [place for thread in threads for place in range(len(thread.ids))]
    given_ = [value for thread, value in zip(threads, expected["own"][0], strict=True) for _ in thread.ids]
    assert row.advantages == given_[threads[0].prompt_length :]


def test_the_numbers_of_own_once_more(asked):
    # Children 1 1 0 1 1 0 1 1: mean 3/4, deviation sqrt(3/2 / 7); roots 1 0 1 0 1: mean 3/5, sqrt(6/5 / 4).
    right, wrong = (gap / ((1.5 / 7) ** 0.5 + 1e-4) for gap in (0.25, -0.75))
    high, low = (gap / (0.3**0.5 + 1e-4) for gap in (0.4, -0.6))
    expected = [[high, right, right], [low, wrong, right], [high, right, wrong], [low], [high, right, right]]
    found = CREDITS["own"](*asked)
    assert [pytest.approx(own, rel=1e-5) for own in expected] == found


def test_a_slow_child_that_nobody_needs_makes_a_negative_difference(asked):
    group, step = asked
    step = weighted(step, "critical_path", 0.5)
    slow = asks(step.task.language, [(SUM, BY_SUM), (TWO, "none")], BY_SUM)
    for entries, value in ((slow.threads[2].ids, 0), (slow.threads[2].sampled, True)):
        entries[-1:-1] = [value] * 20
    paid = [REWARDS["critical_path"](each, SOLVED, step) for each in (slow, slow.without(2))]
    root, first, second = (sum(thread.sampled) for thread in slow.threads)
    assert second > first
    assert paid == [1 - 0.5 * s / (s + 64) for s in (root + second, root + first)]
    group = group._replace(rollouts=[slow] * 2, verdicts=[SOLVED, FAILED], rewards=[paid[0], 0.0])
    found = differences(group, step, 0)
    assert found == [paid[0], pytest.approx(paid[0] - paid[1])] and found[1] < 0
    late = differences(group._replace(rewards=[0.0, 0.0]), step, 1)
    assert late == [0.0, 0.0], "where all is lost nobody makes a difference"


@pytest.mark.parametrize("credit", BY_HAND)
def test_a_group_without_differences_teaches_nothing(asked, credit):
    group, step = asked
    same = group._replace(rollouts=[group.rollouts[3]] * 2, verdicts=[FAILED] * 2, rewards=[0.0, 0.0])
    assert CREDITS[credit](same, step) is None
    alone = group._replace(rollouts=group.rollouts[1:4:2], verdicts=[FAILED] * 2, rewards=[0.0, 0.0])
    expected = {"own": [[0, 0, 1], [0]], "oracle": [[0.5, 0, 1], [0]]}
    expected = by_role(expected[credit]) if credit in expected else None
    assert CREDITS[credit](alone, step) == expected


def test_agreement_with_the_oracle_counts_signs(asked):
    group, step = asked
    # The oracle's values: roots 1.5 0.5 1.5 0 2, mean 1.1; children 1 1 0 1 1 0 1 1, mean 3/4.
    assert agreement(CREDITS["oracle"], [group] * 2, step) == {"root": (10, 10, 0), "child": (16, 16, 0)}
    assert agreement(CREDITS["own"], [group], step) == {"root": (5, 5, 0), "child": (8, 8, 0)}
    # The children that made a difference are right.
    assert agreement(CREDITS["difference"], [group], step) == {"root": (5, 5, 0), "child": (8, 2, 0)}
    # To every thread its rollout's: 1 1, 0 0, 1 1, 1 1 against 1 1, 0 1, 1 0, 1 1.
    assert agreement(CREDITS["broadcast"], [group], step)["child"] == Agreement(8, 6, 2)
    assert agreement(lambda group, step: None, [group], step)["child"] == (8, 0, 0)
    shares = agreements([group], step)
    assert (shares["broadcast_child_same"], shares["broadcast_child_opposite"]) == (6 / 8, 2 / 8)
    assert (shares["difference_child_same"], shares["difference_root_opposite"]) == (2 / 8, 0)
    nobody = group._replace(rollouts=[group.rollouts[3]] * 2, verdicts=[FAILED] * 2, rewards=[0.0, 0.0])
    assert set(agreements([nobody], step).values()) == {None}, "the oracle moves nobody"


class Known:
    """A task of which a child's prompt says all but whether it was right, which its last token does."""

    def __init__(self, needs, params):
        self.needs, self.params = needs, params
        self.language = SimpleNamespace(syntax=SimpleNamespace(returned=lambda ids: ids))

    def label(self, problem, prompt, returned):
        return Label(bool(prompt[0]), bool(prompt[1]), returned is not None and bool(returned[-1]))


BIT = st.integers(0, 1)
CHILD = st.tuples(BIT, BIT, BIT)
"""Worth, solvable, right."""
ROLLOUT = st.tuples(BIT, st.lists(CHILD, max_size=4))
GROUP = st.lists(ROLLOUT, min_size=2, max_size=4)


def known_rollout(children, nested=()):
    """`nested` are children of the first child."""
    every = [(0, 0, 0), *children, *nested]
    threads = []
    for index, (worth, solvable, right) in enumerate(every):
        parent = -1 if index == 0 else int(index > len(children))
        threads.append(Thread(index, parent, 0 if index == 0 else 1 + (parent == 1), 2,
                              [worth, solvable, 7, right], [False, False, True, True], [0.0] * 4,
                              Status.DONE))  # fmt: skip
    if children:
        threads[0].spawns = [Spawn(3, list(range(1, len(children) + 1)))]
    if nested:
        threads[1].spawns = [Spawn(3, list(range(len(children) + 1, len(every))))]
    return Rollout("", threads)


def known_group(drawn):
    solved = [bool(strict) for strict, _ in drawn]
    verdicts = [Judgement("done", strict=strict, lenient=strict) for strict in solved]
    return Group(None, [known_rollout(children) for _, children in drawn], verdicts, [*map(float, solved)])


def advantages(credit, drawn, step, needs="any"):
    group = known_group(drawn)
    found = CREDITS[credit](group, step._replace(task=Known(needs, step.task.params)))
    return found or [[0.0] * len(rollout.threads) for rollout in group.rollouts]


@pytest.mark.parametrize("credit", BY_HAND)
@given(drawn=GROUP, order=st.randoms(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_nothing_leaks_between_siblings(params, credit, drawn, order, data):
    """What a thread writes reaches no other but by what is known of it, and that only through the mean and
    the deviation of its role, which all of the role share."""
    step = Step(0, 2, params.rl.policies["apr"], open_task(params))
    before = advantages(credit, drawn, step)
    group = known_group(drawn)
    task = Known("any", params)
    for rollout in group.rollouts:
        labels = label_children(task, None, rollout)
        for thread in rollout.threads[1:]:
            others = [index for index in labels if index != thread.index]
            alone = rollout
            for index in reversed(others):
                alone = alone.without(index)
            assert label_children(task, None, alone) == {1: labels[thread.index]}, "known of it alone"
            thread.ids[2] = data.draw(st.integers(2, 9))
    assert (CREDITS[credit](group, step._replace(task=task)) or before) == before, "other words, same labels"
    mixed = [(strict, order.sample(children, len(children))) for strict, children in drawn]
    after = advantages(credit, mixed, step)
    for (_, old), (_, new), was, now in zip(drawn, mixed, before, after, strict=True):
        assert now[0] == pytest.approx(was[0], rel=1e-5, abs=1e-6)
        assert sorted(zip(new, now[1:], strict=True)) == [
            (child, pytest.approx(value, rel=1e-5, abs=1e-6))
            for child, value in sorted(zip(old, was[1:], strict=True))
        ]
    if credit != "difference":
        alike = {}
        for (_, children), own in zip(drawn, before, strict=True):
            for (*_, right), value in zip(children, own[1:], strict=True):
                assert alike.setdefault(right, value) == value, "in whatever company"
        if len(alike) == 2:
            assert alike[1] > alike[0]
    roots = [(strict, [(0, 0, 0)] * len(children)) for strict, children in drawn]
    if credit != "oracle":
        assert [own[0] for own in advantages(credit, roots, step)] == [own[0] for own in before]


@given(drawn=GROUP, needs=st.sampled_from(["any", "all"]))
@settings(max_examples=100, deadline=None)
def test_difference_is_what_a_count_of_helpers_says(params, drawn, needs):
    step = Step(0, 2, params.rl.policies["apr"], open_task(params))
    found = advantages("difference", drawn, step, needs)
    for (strict, children), given_ in zip(drawn, found, strict=True):
        helped = [worth and right for worth, _, right in children]
        enough = sum(helped) == 1 or needs == "all"
        assert given_[1:] == [float(strict and own and enough) for own in helped]


def test_a_grandchild_is_pivotal_only_where_its_parent_is(params):
    step = Step(0, 2, params.rl.policies["apr"], open_task(params))
    task = Known("any", params)
    right = (1, 1, 1)
    for siblings, expected in (([right], [1.0, 1.0, 0.0]), ([right, right], [0.0, 0.0, 0.0, 0.0])):
        rollout = known_rollout(siblings, nested=[right, (1, 1, 0)])
        group = Group(None, [rollout], [SOLVED], [1.0])
        found = differences(group, step._replace(task=task), 0)
        assert found == expected


def test_a_task_without_labels_is_refused_for_credits_that_ask_for_them(params):
    for credit in BY_HAND:
        policies = {"parallel": {"method": "parallel", "credit": credit}}
        with pytest.raises(ParamsError) as said:
            parse_params(VALUES | {"rl": VALUES["rl"] | {"policies": policies}})
        assert str(said.value) == (
            f"params: rl.policies.parallel.credit: '{credit}' is not allowed; allowed: one without labels of "
            "children, of which the task tests.tasks.toy has none"
        )
        values = params.model_dump()
        values["rl"]["policies"]["apr"]["credit"] = credit
        assert parse_params(values).rl.policies["apr"].credit == credit
