"""Scheduling and statuses on scripts that a decoder plays back, then on the slot engine with a tiny model."""

import random
from collections.abc import Hashable, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from apr.engine.interface import Sampling, Segment
from apr.engine.shared import SharedDecoder
from apr.engine.slots import SlotEngine
from apr.language.thread_syntax import ThreadSyntax
from apr.language.vocabulary import Vocabulary
from apr.rollouts.orchestrator import Orchestrator
from apr.rollouts.rollout import Limits, Request, Rollout, Status, Usage
from apr.tasks.countdown.words import words_of

VOCABULARY = Vocabulary(20, words_of(4), 5)
SYNTAX = ThreadSyntax(VOCABULARY)
LIMITS = Limits(window=64, max_tokens=200, max_children=3, max_depth=1)


def ids(text: str) -> list[int]:
    return VOCABULARY.encode(text)


class Player:
    """A decoder that plays back scripts: what a thread samples depends on the text it has so far."""

    def __init__(self, script: dict[str, str], capacity: int = 4, seed: int = 0):
        self.script = {tuple(ids(text)): ids(then) for text, then in script.items()}
        self.capacity = capacity
        self.keys: list[int] = []
        self.ranks: list[tuple[int, int]] = []
        self.closed = 0
        self.most_running = 0
        self._random = random.Random(seed)
        self._text: dict[Hashable, list[int]] = {}
        self._limit: dict[Hashable, int] = {}

    def open(
        self, key: Hashable, prompt: Sequence[int], sampling: Sampling, limit: int, rank: int = 0
    ) -> None:
        self.ranks.append((len(prompt), rank))
        assert key not in self._text and len(prompt) < limit
        self._text[key], self._limit[key] = list(prompt), limit
        self.keys.append(sampling.key)

    def extend(self, key: Hashable, ids: Sequence[int], limit: int) -> None:
        assert key not in self._limit and len(self._text[key]) + len(ids) < limit
        self._text[key] += ids
        self._limit[key] = limit

    def shorten(self, key: Hashable, limit: int) -> None:
        if key in self._limit:
            self._limit[key] = min(limit, self._limit[key])

    def close(self, key: Hashable) -> None:
        self._limit.pop(key, None)
        del self._text[key]
        self.closed += 1

    @property
    def busy(self) -> bool:
        return bool(self._limit)

    def step(self) -> list[tuple[Hashable, Segment]]:
        """One thread at a time stops, in an order that depends on the seed."""
        self.most_running = max(self.most_running, len(self._limit))
        key = self._random.choice(list(self._limit))
        text, limit = self._text[key], self._limit.pop(key)
        new = self.script[tuple(text)][: limit - len(text)]
        text += new
        reason = "stop" if new[-1] in SYNTAX.stop_ids else "length"
        return [(key, Segment(new, [-token / 100 for token in new], reason))]


class Together(Player):
    """All threads stop at once, in an order that depends on the seed."""

    def step(self) -> list[tuple[Hashable, Segment]]:
        return [stopped for _ in range(len(self._limit)) for stopped in super(Together, self).step()]


def play(
    script: dict[str, str], limits: Limits = LIMITS, seed: int = 0, join: str = "all", kind: type = Player
) -> Rollout:
    player = kind(script, seed=seed)
    (rollout,) = Orchestrator(player, SYNTAX, limits).run([Request("p/0", ids(ROOT), 1.0, 7, join)])
    assert not player.busy and player.closed == len(player.keys)
    return rollout


def rows(rollout: Rollout) -> list[tuple]:
    return [(t.index, t.parent, t.depth, t.status.value, VOCABULARY.decode(t.ids)) for t in rollout.threads]


ROOT = "<root> 7 :0 3 4 go"
FAMILY = {
    ROOT: "spawn #2 1 #1 2 run",
    "<child> 1 go": "5 6 join 3 + 4 = 7 end",
    "<child> 2 go": "join none end",
    ROOT + " spawn #2 1 #1 2 run joined 3 + 4 = 7 joined none resume": "answer 3 + 4 = 7 end",
}


def test_a_spawn_and_its_joins_token_by_token():
    rollout = play(FAMILY)
    parent = ROOT + " spawn #2 1 #1 2 run joined 3 + 4 = 7 joined none resume answer 3 + 4 = 7 end"
    assert rows(rollout) == [
        (0, -1, 0, "done", parent),
        (1, 0, 1, "done", "<child> 1 go 5 6 join 3 + 4 = 7 end"),
        (2, 0, 1, "done", "<child> 2 go join none end"),
    ]
    root = rollout.threads[0]
    assert root.prompt_length == 6
    assert [(spawn.at, spawn.children) for spawn in root.spawns] == [(12, [1, 2])]
    assert root.sampled == [False] * 6 + [True] * 6 + [False] * 9 + [True] * 7
    expected = [-token / 100 if flag else 0.0 for token, flag in zip(root.ids, root.sampled, strict=True)]
    assert root.logprobs == expected


def test_usage_by_hand():
    assert play(FAMILY).usage == Usage(
        prompt=6 + 3 + 3,
        sampled=(6 + 7) + 9 + 3,
        injected=9,
        sequential=6 + 9 + 7,
        longest=28,
        children=2,
        depth=1,
    )
    assert play(FAMILY).usage.total == 25


def test_a_rollout_without_a_spawn():
    rollout = play({ROOT: "answer none end"})
    assert rollout.usage == Usage(6, 3, 0, 3, 9, 0, 0)
    assert rollout.threads[0].status == Status.DONE


TREE = {  # two spawns of the root, and grandchildren
    ROOT: "spawn #2 1 #1 1 run",
    "<child> 1 go": "spawn #2 2 #1 3 run",
    "<child> 2 go": "join 2 end",
    "<child> 3 go": "9 9 join 3 end",
    "<child> 1 go spawn #2 2 #1 3 run joined 2 joined 3 resume": "join 4 end",
    ROOT + " spawn #2 1 #1 1 run joined 4 joined 4 resume": "spawn #1 3 run",
    ROOT
    + " spawn #2 1 #1 1 run joined 4 joined 4 resume spawn #1 3 run joined 3 resume": "answer none end",
}


@pytest.mark.parametrize("seed", range(5))
def test_threads_are_numbered_by_parent_and_spawn_whatever_finishes_first(seed):
    rollout = play(TREE, LIMITS._replace(max_depth=2), seed)
    assert [(t.parent, t.depth, VOCABULARY.decode(t.ids[:3])) for t in rollout.threads] == [
        (-1, 0, "<root> 7 :0"),
        (0, 1, "<child> 1 go"),
        (0, 1, "<child> 1 go"),  # equal messages are different threads
        (0, 1, "<child> 3 go"),
        (1, 2, "<child> 2 go"),
        (1, 2, "<child> 3 go"),
        (2, 2, "<child> 2 go"),
        (2, 2, "<child> 3 go"),
    ]
    assert [spawn.children for spawn in rollout.threads[0].spawns] == [[1, 2], [3]]
    assert rollout.threads[2].spawns[0].children == [6, 7]
    child = 6 + 5 + 3
    assert rollout.usage.sequential == (6 + 4 + 3) + child + 5
    assert rollout.usage.depth == 2 and rollout.usage.children == 7


def test_noise_keys_belong_to_the_place_in_the_tree():
    def keys(seed, request):
        player = Player(FAMILY, seed=seed)
        Orchestrator(player, SYNTAX, LIMITS).run([request])
        return set(player.keys)

    request = Request("p/0", ids(ROOT), 1.0, 7)
    assert len(keys(0, request)) == 3
    assert keys(0, request) == keys(3, request)
    assert not keys(0, request) & keys(0, request._replace(seed=8))
    assert not keys(0, request) & keys(0, request._replace(id="p/1"))


@pytest.mark.parametrize(
    "script, limits, status, reason",
    [
        ({ROOT: "#1 1 run"}, LIMITS, "malformed", "run without spawn (token 8)"),
        ({ROOT: "spawn #1 run"}, LIMITS, "malformed", "empty message (token 8)"),
        ({ROOT: "spawn #1 1 run"}, LIMITS._replace(max_depth=0), "malformed", "spawn at depth 0"),
        ({ROOT: "spawn #4 1 #3 1 #2 1 #1 1 run"}, LIMITS, "malformed", "spawn of 4 children"),
        ({ROOT: "1 " * 60}, LIMITS, "truncated", "window full"),
        ({ROOT: "1 " * 60}, LIMITS._replace(max_tokens=10), "truncated", "no tokens left"),
        ({ROOT: "1 1"}, LIMITS._replace(window=6), "truncated", "the prompt fills the window"),
        ({ROOT: "answer none end"}, LIMITS._replace(max_tokens=0), "cancelled", "no tokens left to sample"),
    ],
)
def test_how_a_root_ends(script, limits, status, reason):
    rollout = play(script, limits)
    (root,) = rollout.threads
    assert (root.status.value, root.reason) == (status, reason)
    assert len(root.ids) <= max(limits.window, 6) and rollout.usage.total <= limits.max_tokens


@pytest.mark.parametrize(
    "said, limits, status, reason",
    [
        ("5 6 end", LIMITS, "malformed", "child ends without join (token 5)"),
        ("join end", LIMITS, "malformed", "empty join (token 4)"),
        ("spawn #1 1 run", LIMITS, "malformed", "spawn at depth 1"),
        ("1 " * 62, LIMITS, "truncated", "window full"),
        ("1 " * 62, LIMITS._replace(max_tokens=4 + 9), "truncated", "no tokens left"),
    ],
)
def test_a_child_that_fails_returns_none(said, limits, status, reason):
    rest = ROOT + " spawn #1 1 run joined none resume"
    rollout = play({ROOT: "spawn #1 1 run", "<child> 1 go": said, rest: "answer none end"}, limits)
    root, child = rollout.threads
    assert (child.status.value, child.reason) == (status, reason)
    if limits.max_tokens == 13:  # the child has used up what was left of the rollout
        assert (root.status.value, root.reason, len(root.ids)) == ("truncated", "no tokens left", 10)
    else:
        assert root.status == Status.DONE and VOCABULARY.decode(root.ids) == rest + " answer none end"


def test_a_message_that_fills_the_window_makes_a_child_that_cannot_start():
    class Copies(ThreadSyntax):
        def child_prompt(self, message):
            return [*message] * 10

    player = Player(
        {ROOT: "spawn #1 1 2 3 run", ROOT + " spawn #1 1 2 3 run joined none resume": "answer none end"}
    )
    limits = LIMITS._replace(window=25)
    (rollout,) = Orchestrator(player, Copies(VOCABULARY), limits).run([Request("p/0", ids(ROOT), 1.0, 7)])
    root, child = rollout.threads
    assert (child.status.value, child.reason) == ("truncated", "the prompt fills the window")
    assert root.ids[12:15] == ids("joined none resume")


def test_joined_messages_that_do_not_fit_the_window():
    family = {ROOT: "spawn #1 1 run", "<child> 1 go": "join " + "5 " * 9 + "end"}
    rollout = play(family, LIMITS._replace(window=21))
    root, child = rollout.threads
    assert (root.status.value, root.reason) == ("truncated", "joined messages do not fit the window")
    assert child.status == Status.DONE and len(root.ids) == 10


def test_children_share_what_is_left_and_nobody_exceeds_it():
    script = {ROOT: "spawn #2 1 #1 2 run", "<child> 1 go": "join 5 end", "<child> 2 go": "9 " * 40}
    then = ROOT + " spawn #2 1 #1 2 run joined 5 joined none resume"
    rollout = play({**script, then: "answer none end"}, LIMITS._replace(max_tokens=20))
    # 6 for the spawn, 14 left, 7 for each child; the first leaves 4, which the root has for itself
    assert [sum(t.sampled) for t in rollout.threads] == [6 + 3, 3, 7]
    assert rollout.threads[2].reason == "no tokens left" and rollout.threads[0].status == Status.DONE
    rollout = play(FAMILY, LIMITS._replace(max_tokens=6))  # nothing left for two children
    assert [t.status.value for t in rollout.threads] == ["truncated", "cancelled", "cancelled"]


RACE = {
    ROOT: "spawn #3 1 #2 2 #1 3 run",
    "<child> 1 go": "5 5 5 5 join 1 end",  # returns something, but later than
    "<child> 2 go": "5 join 2 end",
    "<child> 3 go": "join none end",
    ROOT + " spawn #3 1 #2 2 #1 3 run joined none joined 2 joined none resume": "answer none end",
}


@pytest.mark.parametrize("seed", range(6))
def test_the_first_success_outruns_its_siblings_whatever_the_decoder_does_first(seed):
    rollout = play(RACE, seed=seed, join="any")
    assert rows(rollout)[1:] == [
        (1, 0, 1, "cancelled", "<child> 1 go 5 5 5 5"),  # as many tokens as the second has sampled
        (2, 0, 1, "done", "<child> 2 go 5 join 2 end"),
        (3, 0, 1, "done", "<child> 3 go join none end"),
    ]
    root, child = rollout.threads[:2]
    assert root.status == Status.DONE and child.reason == "outrun by a sibling"
    assert len(child.ids) == len(child.sampled) == len(child.logprobs) == 7
    assert rollout.usage.sequential == 8 + 4 + 3 and rollout.usage.total == 8 + 4 + 4 + 3 + 3


CLAN = {  # the second child ends after five tokens; what its siblings do after that has never been
    ROOT: "spawn #5 1 #4 2 #3 3 #2 4 #1 6 run",
    "<child> 1 go": "5 5 5 join none end",
    "<child> 2 go": "5 5 join 2 end",
    "<child> 3 go": "spawn #2 7 #1 8 run",
    "<child> 7 go": "5 5 5 join 7 end",
    "<child> 8 go": "join 8 end",
    "<child> 3 go spawn #2 7 #1 8 run joined none joined 8 resume": "join 3 end",
    "<child> 4 go": "spawn #1 9 run",  # four tokens, so its child has one
    "<child> 9 go": "spawn #1 8 run",
    "<child> 9 go spawn #1 8 run joined 8 resume": "join 9 end",
    "<child> 4 go spawn #1 9 run joined 9 resume": "join 4 end",
    "<child> 6 go": "5 spawn #1 8 run",  # five tokens, so its child has none
    "<child> 6 go 5 spawn #1 8 run joined 8 resume": "join 4 end",
}
CLAN[ROOT + f" {CLAN[ROOT]} joined none joined 2" + " joined none" * 3 + " resume"] = "answer 2 end"


@pytest.mark.parametrize("kind", [Player, Together])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_below_an_outrun_thread_is_cut_at_the_same_moment(seed, kind):
    rollout = play(CLAN, LIMITS._replace(max_depth=3, max_children=5), seed, "any", kind)
    assert rows(rollout)[1:] == [
        (1, 0, 1, "cancelled", "<child> 1 go 5 5 5 join none"),
        (2, 0, 1, "done", "<child> 2 go 5 5 join 2 end"),
        (3, 0, 1, "cancelled", "<child> 3 go spawn #2 7 #1 8"),
        (4, 0, 1, "cancelled", "<child> 4 go spawn #1 9 run"),
        (5, 0, 1, "cancelled", "<child> 6 go 5 spawn #1 8 run"),
        (6, 4, 2, "cancelled", "<child> 9 go spawn"),
        (7, 5, 2, "cancelled", "<child> 8 go"),
    ]
    spawned = [[spawn.children for spawn in thread.spawns] for thread in rollout.threads[3:6]]
    assert spawned == [[], [[6]], [[7]]]
    assert rollout.usage.sequential == 12 + 5 + 3 and rollout.usage.total == 12 + 5 * 3 + 4 + 5 + 1 + 3


@pytest.mark.parametrize("kind", [Player, Together])
@pytest.mark.parametrize("seed", range(8))
def test_a_child_goes_on_at_the_first_success_of_its_own_children(seed, kind):
    """Else it would end after its sibling; and what ends together stays."""
    script = {
        ROOT: "spawn #2 1 #1 2 run",
        "<child> 1 go": "spawn #2 3 #1 4 run",
        "<child> 3 go": "join 3 end",
        "<child> 4 go": "5 5 5 5 5 5 5 5 5 join 4 end",
        "<child> 1 go spawn #2 3 #1 4 run joined 3 joined none resume": "join 3 end",
        "<child> 2 go": "5 " * 9 + "join 2 end",  # 12 tokens; the first child: 6 + 3 + 3
        ROOT + " spawn #2 1 #1 2 run joined 3 joined 2 resume": "answer 3 end",
    }
    rollout = play(script, LIMITS._replace(max_depth=2), seed, "any", kind)
    statuses = [thread.status.value for thread in rollout.threads]
    assert statuses == ["done", "done", "done", "done", "cancelled"]
    assert VOCABULARY.decode(rollout.threads[4].ids) == "<child> 4 go 5 5 5"
    assert rollout.usage.sequential == 6 + 12 + 3
    script["<child> 2 go"] = "5 " * 10 + "join 2 end"
    script[ROOT + " spawn #2 1 #1 2 run joined 3 joined none resume"] = "answer 3 end"
    rollout = play(script, LIMITS._replace(max_depth=2), seed, "any", kind)
    assert [rollout.threads[2].status.value, len(rollout.threads[2].ids)] == ["cancelled", 3 + 12]


@pytest.mark.parametrize("seed", range(6))
def test_without_a_success_any_is_all(seed):
    lost = {ROOT: FAMILY[ROOT], "<child> 1 go": "5 6 join none end", "<child> 2 go": "join none end"}
    lost[ROOT + " spawn #2 1 #1 2 run joined none joined none resume"] = "answer none end"
    assert play(lost, seed=seed, join="any").threads == play(lost, seed=seed).threads


@pytest.mark.parametrize("kind", [Player, Together])
def test_what_an_outrun_thread_had_left_goes_to_its_parent(kind):
    # 8 for the spawn, 27 left, 9 for each child: a parent that waits for all has 27 - 4 - 6 - 3 left
    then = ROOT + " spawn #3 1 #2 2 #1 3 run joined none joined 2 joined none resume"
    limits = LIMITS._replace(max_tokens=8 + 27)
    for seed in range(6):
        rollout = play({**RACE, then: "9 " * 30}, limits, seed, "any", kind)
        assert rollout.usage.total == 35 and rollout.threads[0].reason == "no tokens left"


@pytest.mark.parametrize("kind", [Player, Together])
def test_who_runs_out_of_tokens_before_a_sibling_returns_is_truncated_whoever_stops_first(kind):
    race = {ROOT: "spawn #2 1 #1 2 run", "<child> 1 go": "9 " * 40, "<child> 2 go": "5 5 join 2 end"}
    race[ROOT + " spawn #2 1 #1 2 run joined none joined 2 resume"] = "answer none end"
    limits = LIMITS._replace(max_tokens=6 + 5 + 5)
    for seed in range(6):
        rollout = play(race, limits, seed, "any", kind)
        assert [t.status.value for t in rollout.threads] == ["truncated", "truncated", "done"]
        assert rollout.threads[1].reason == "no tokens left"


@pytest.mark.parametrize("kind", [Player, Together])
@pytest.mark.parametrize("seed", range(6))
def test_rollouts_that_share_equal_threads_are_what_they_are_alone(kind, seed):
    script = RACE | {ROOT + " spawn #3 1 #2 2 #1 3 run joined 1 joined 2 joined none resume": "answer 1 end"}
    joins = ["all", "any"] * 4
    requests = [Request(f"p/{n}", ids(ROOT), 0.0, 7, join) for n, join in enumerate(joins)]
    player = kind(script, seed=seed)
    rollouts = Orchestrator(SharedDecoder(player), SYNTAX, LIMITS).run(requests)
    for join, rollout in zip(joins, rollouts, strict=True):
        assert rollout.threads == play(script, seed=seed, join=join, kind=kind).threads
    assert len(player.keys) == 5, "a root, its three children, and what follows another join"
    assert not player.busy and player.closed == 5


def test_requests_are_fed_as_threads_stop_and_come_back_in_order():
    player = Player(FAMILY, capacity=3)
    fed = []

    def requests():
        for number in range(20):
            fed.append(number)
            assert len(player._limit) < 3
            yield Request(f"p/{number}", ids(ROOT), 1.0, 7)

    ended, tokens = [], []

    def progress(rollouts, sampled):
        ended.extend(rollouts)
        tokens.append(sampled)

    rollouts = Orchestrator(player, SYNTAX, LIMITS).run(requests(), progress)
    assert [rollout.id for rollout in rollouts] == [f"p/{number}" for number in range(20)]
    assert tokens[-1] == 20 * 25 and tokens == sorted(tokens)
    assert sorted(map(id, ended)) == sorted(map(id, rollouts))
    assert player.most_running <= 3 + 2


@pytest.mark.parametrize("admission", ["started_first", "critical_path"])
def test_who_comes_first_where_there_is_too_little_room(admission):
    player = Player(FAMILY, capacity=100)
    requests = [Request(f"p/{n}", ids(ROOT), 1.0, 7) for n in range(3)]
    Orchestrator(player, SYNTAX, LIMITS, admission).run(requests)
    roots = [rank for length, rank in player.ranks if length == 6]
    children = [rank for length, rank in player.ranks if length == 3]
    if admission == "started_first":
        assert roots == [1, 2, 3] and sorted(children) == [1, 1, 2, 2, 3, 3]
    else:
        assert roots == [0, 0, 0] and children == [1] * 6


def test_a_fault_of_the_decoder_closes_its_threads_and_is_raised():
    player = Player({ROOT: "spawn #2 1 #1 2 run", "<child> 1 go": "join 5 end"})  # no script for child 2
    with pytest.raises(KeyError):
        Orchestrator(player, SYNTAX, LIMITS).run([Request("p/0", ids(ROOT), 1.0, 7)])
    assert not player._text


class Wordy(ThreadSyntax):
    """Reads any `run` as a spawn of the three tokens before it, so that an untrained model makes trees."""

    def messages(self, ids):
        return [[token] for token in ids[-4:-1]]

    def returned(self, ids):
        return list(ids[-3:-1])


def check_logprobs(model, thread):
    with torch.no_grad():
        logits = model(torch.tensor([thread.ids]), use_cache=False).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)
    for at, sampled in enumerate(thread.sampled):
        expected = float(logprobs[at - 1, thread.ids[at]]) if sampled else 0.0
        assert thread.logprobs[at] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("join", ["all", "any"])
def test_trees_of_a_model_do_not_depend_on_slots_though_more_parents_wait_than_there_are_slots(join):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY.size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()
    syntax, limits = Wordy(VOCABULARY), Limits(window=64, max_tokens=100, max_children=3, max_depth=2)
    requests = [Request(f"p/{n}", ids("<root> 7 :0 go"), 1.0, 7) for n in range(20)]

    def decode(slots, decoder_of=lambda engine: engine):
        engine = SlotEngine(model, syntax.stop_ids, slots, 64)
        return Orchestrator(decoder_of(engine), syntax, limits).run(requests)

    requests = [request._replace(join=join) for request in requests]
    few, many = decode(1), decode(32)
    assert decode(5, SharedDecoder) == few
    assert [rollout.threads for rollout in few] == [
        [replace(thread, logprobs=pytest.approx(thread.logprobs, abs=1e-5)) for thread in rollout.threads]
        for rollout in many
    ]
    threads = [thread for rollout in few for thread in rollout.threads]
    assert {1, 2} <= {thread.depth for thread in threads}
    if join == "any":
        assert sum(thread.status == Status.CANCELLED for thread in threads) > 8
    assert sum(len(t.spawns) for t in threads) > 8
    for thread in threads:
        check_logprobs(model, thread)
