"""A minute of hostile streams less than `tests.faults.fuzz` has, and the worst of them by hand."""

import random
from collections.abc import Hashable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.engine.interface import Sampling, Segment
from apr.language import Language
from apr.language.vocabulary import DIGITS, Vocabulary
from apr.pipeline.plan import load_scale
from apr.rollouts.orchestrator import OUTRUN, Orchestrator
from apr.rollouts.rollout import Limits, Request, Status
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.countdown.problem import Problem
from apr.tasks.countdown.words import words_of
from tests.faults.fuzz import HostileDecoder, check, demonstrations, fuzz, nested, waited

PROBLEM = Problem("p", (3, 5, 9, 12), 27)


class Recited:
    """A `Decoder` in which every thread decodes the next of some texts, and the last one ever after."""

    capacity = 4

    def __init__(self, texts: Sequence[Sequence[int]], stop_ids: frozenset[int]):
        self.texts, self.stop_ids = list(texts), stop_ids
        self.room: dict[Hashable, int] = {}
        self.length: dict[Hashable, int] = {}

    def open(
        self, key: Hashable, prompt: Sequence[int], sampling: Sampling, limit: int, rank: int = 0
    ) -> None:
        self.length[key], self.room[key] = len(prompt), limit - len(prompt)

    def extend(self, key: Hashable, ids: Sequence[int], limit: int) -> None:
        self.length[key] += len(ids)
        self.room[key] = limit - self.length[key]

    def shorten(self, key: Hashable, limit: int) -> None:
        if key in self.room:
            self.room[key] = min(self.room[key], limit - self.length[key])

    def close(self, key: Hashable) -> None:
        del self.length[key]
        self.room.pop(key, None)

    @property
    def busy(self) -> bool:
        return bool(self.room)

    def step(self) -> list[tuple[Hashable, Segment]]:
        key = next(iter(self.room))
        room, text = self.room.pop(key), self.texts[0]
        self.texts = self.texts[1:] or self.texts
        stop = next((at for at, token in enumerate(text) if token in self.stop_ids), len(text))
        ids = list(text[: min(stop + 1, room)])
        while len(ids) < room and not (ids and ids[-1] in self.stop_ids):
            ids.append(0)
        self.length[key] += len(ids)
        return [(key, Segment(ids, [-1.0] * len(ids), "stop" if ids[-1] in self.stop_ids else "length"))]


def run(language, texts, limits, join="all"):
    task = open_task(load_scale("default"), language)
    decoder = Recited(texts, language.syntax.stop_ids)
    request = Request("p/0", task.prompt(PROBLEM), 1.0, 0, join)
    (rollout,) = Orchestrator(decoder, language.syntax, limits).run([request])
    check(task, limits, PROBLEM, rollout)
    return rollout


LANGUAGE = Language(Vocabulary(100, words_of(4), 10))
TOKENS = st.integers(0, LANGUAGE.vocabulary.size - 1)
FRAMES = st.sampled_from([LANGUAGE.vocabulary.encode(text) for text in (
    "spawn #1", "spawn #2", "#1", "run", "join none end", "join 3 + 9 = 12 end", "answer none end", "end",
    "answer 9 / 3 = 3 , 5 * 3 = 15 , 15 + 12 = 27 end", "joined none resume",
)])  # fmt: skip
TEXTS = st.lists(st.lists(st.one_of(FRAMES, TOKENS.map(lambda token: [token])), max_size=12).map(
    lambda parts: [token for part in parts for token in part]), min_size=1, max_size=6)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.integers(1, 300), st.integers(0, 3), st.integers(1, 10), st.sampled_from(["all", "any"]))
def test_whatever_is_decoded_ends_within_its_budgets(texts, max_tokens, depth, children, join):
    limits = Limits(64, max_tokens, children, depth)
    run(LANGUAGE, texts, limits, join)


class OneByOne(HostileDecoder):
    """Stops one of the live threads at a step, which one is chance."""

    def __init__(self, language, demonstrations, seed):
        super().__init__(language, demonstrations)
        self._random = random.Random(seed)

    def next(self):
        return [self._random.choice(list(self._live))]


@pytest.mark.parametrize("join", ["all", "any"])
def test_nested_rollouts_do_not_depend_on_who_stops_first(join):
    task = open_task(nested(load_scale("default")))
    problems = [Problem(f"p{n}", (2 + n, 3, 7, 11), 20 + n) for n in range(20)]
    shown, found = demonstrations(task, problems), []
    for tokens, window in ((400, 96), (5000, 96), (5000, 288)):
        limits = Limits(window, tokens, 4, 3)
        requests = [Request(f"{tokens}/{n}", task.prompt(problem), 1.0, 0, join)
                    for n, problem in enumerate(problems * 50)]  # fmt: skip
        decoders = [HostileDecoder(LANGUAGE, shown), *(OneByOne(LANGUAGE, shown, seed) for seed in range(2))]
        first, *others = (Orchestrator(decoder, LANGUAGE.syntax, limits).run(requests)
                          for decoder in decoders)  # fmt: skip
        for other in others:
            assert other == first
        assert not any(decoder.busy for decoder in decoders)
        for problem, rollout in zip(problems * 50, first, strict=True):
            check(task, limits, problem, rollout)
        found += first
    threads = [thread for rollout in found for thread in rollout.threads]
    outrun = [thread for thread in threads if thread.reason == OUTRUN]
    assert max(thread.depth for thread in threads) == 3
    assert (len(outrun) > 20 and any(map(waited, outrun))) if join == "any" else not outrun


def test_a_few_thousand_hostile_streams():
    found, streams = fuzz(30_000, seed=3)
    assert streams >= 30_000 and found["children"] > 3000
    assert min(found[name] for name in ("done", "malformed", "truncated")) > 100
    assert fuzz(2_000, seed=3) == fuzz(2_000, seed=3)


BOMB = Language(Vocabulary(100, words_of(4), 10_000))


def bomb(count):
    return BOMB.vocabulary.encode(f"spawn {' '.join(f'#{n} 1' for n in range(count, 0, -1))} run")


def test_ten_thousand_messages_beyond_what_is_allowed_are_malformed():
    rollout = run(BOMB, [bomb(10_000)], Limits(30_000, 50_000, 100, 1))
    assert rollout.threads[0].status == Status.MALFORMED
    assert rollout.threads[0].reason == "spawn of 10000 children" and len(rollout.threads) == 1


def test_ten_thousand_messages_that_are_allowed_share_what_is_left_and_are_counted():
    prompt = len(open_task(load_scale("default"), BOMB).prompt(PROBLEM))
    spent = len(bomb(10_000))
    returned, answer = BOMB.vocabulary.encode("join none end"), BOMB.vocabulary.encode("answer none end")
    limits = Limits(60_000, spent + 25_000, 10_000, 1)
    rollout = run(BOMB, [bomb(10_000), *[returned] * 10_000, answer], limits)
    assert rollout.usage.children == 10_000 and rollout.usage.total <= limits.max_tokens
    assert {thread.status for thread in rollout.threads[1:]} == {Status.TRUNCATED}, "two tokens each"
    assert len(rollout.threads[0].ids) == prompt + spent + 2 * 10_000 + 1 + len(answer)
    limits = Limits(60_000, spent + 9_999, 10_000, 1)
    rollout = run(BOMB, [bomb(10_000), answer], limits)
    assert {thread.status for thread in rollout.threads[1:]} == {Status.CANCELLED}, "not one token each"
    assert rollout.usage.total == spent + len(answer)


def test_empty_and_identical_messages_and_spawns_inside_spawns():
    limits = Limits(200, 500, 10, 1)
    words = LANGUAGE.vocabulary.encode
    empty = run(LANGUAGE, [words("spawn #2 #1 run")], limits)
    assert empty.threads[0].reason.startswith("empty message")
    same = run(LANGUAGE, [words("spawn #3 1 #2 1 #1 1 run"), words("join 1 end")], limits)
    assert [thread.status for thread in same.threads[1:]] == [Status.DONE] * 3
    inside = run(LANGUAGE, [words("spawn #2 1 spawn #1 2 run")], limits)
    assert all(len(spawn.children) == 1 for spawn in inside.threads[0].spawns), "the inner one counts"
    assert {thread.reason for thread in inside.threads[1:]} == {"spawn at depth 1"}
    nested = run(LANGUAGE, [words("spawn #2 1 #1 1 run")], Limits(200, 500, 10, 3))
    assert nested.usage.depth == 3 and nested.usage.total <= 500
    reasons = {thread.reason for thread in nested.threads if thread.depth == 3}
    assert reasons == {"spawn at depth 3", "no tokens left"}


def test_numbers_without_end_are_malformed_and_cost_nothing():
    language = Language(Vocabulary(100, words_of(4), 10))
    long = "9" + " ##9" * 3000
    ids = language.vocabulary.ids
    number = [ids[word] for word in long.split()]
    text = [ids["answer"], *number, ids["*"], *number, ids["="], *number, ids["end"]]
    rollout = run(language, [text], Limits(20_000, 20_000, 10, 1))
    row = judge(open_task(load_scale("default"), language), PROBLEM, rollout)
    assert row.status == "malformed" and row.reason == "expected a number, found '9'"
    longest = ["9"] + ["##9"] * (DIGITS - 1)
    assert language.vocabulary.read_number([ids[word] for word in longest], 0) == (10**DIGITS - 1, DIGITS)
