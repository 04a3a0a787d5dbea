"""Equal threads are decoded once, and whoever shares one cannot tell."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.engine import shared
from apr.engine.interface import Sampling, Segment
from apr.engine.shared import SharedDecoder
from apr.engine.slots import SlotEngine
from tests.engine.test_exactness import STOP, VOCABULARY, WINDOW, check_decoder, health, play, threads

GREEDY = Sampling(0.0, 1)


class Countdown:
    """A decoder whose threads count down from their last token, one each step, and stop at 0."""

    capacity = 4

    def __init__(self):
        self.asked, self.names = [], {}
        self._ids, self._limit = {}, {}

    def open(self, key, prompt, sampling, limit, rank=0):
        if not len(prompt) < limit:
            raise ValueError("no room to sample")
        self.names[key] = len(self.names)
        self.asked.append(("open", self.names[key], *prompt))
        self._ids[key], self._limit[key] = list(prompt), (len(prompt), limit)

    def extend(self, key, ids, limit):
        if not len(self._ids[key]) + len(ids) < limit:
            raise ValueError("no room to sample")
        self.asked.append(("extend", self.names[key], *ids))
        self._ids[key] += ids
        self._limit[key] = (len(self._ids[key]), limit)

    def shorten(self, key, limit):
        self.asked.append(("shorten", self.names[key], limit))
        self._limit[key] = (self._limit[key][0], limit)

    def close(self, key):
        self.asked.append(("close", self.names[key]))
        del self._ids[key]
        self._limit.pop(key, None)

    @property
    def busy(self):
        return bool(self._limit)

    def step(self):
        self.asked.append(("step",))
        stopped = []
        for key, (handed, limit) in list(self._limit.items()):
            ids = self._ids[key]
            if len(ids) < limit:
                ids.append(ids[-1] - 1)
            del ids[max(limit, handed):]
            if ids[-1] == 0 or len(ids) == limit:
                del self._limit[key]
                new = ids[handed:]
                stopped.append((key, Segment(new, [-float(x) for x in new], "length" if ids[-1] else "stop")))
        return stopped

    def told(self):
        """What it was asked since it was last asked this, but for steps."""
        asked, self.asked = [call for call in self.asked if call != ("step",)], []
        return asked


@pytest.fixture
def below():
    return Countdown()


@pytest.fixture
def decoder(below):
    return SharedDecoder(below)


def run(decoder):
    """Steps until nothing is decoded: what each thread samples, and whether its limit ended it."""
    found = {}
    while decoder.busy:
        found |= {key: (segment.ids, segment.reason) for key, segment in decoder.step()}
    return found


def test_one_of_those_that_share_a_thread_extends_it_and_what_others_have_is_read_again(below, decoder):
    for key in "abc":
        decoder.open(key, [9, 2], GREEDY, 20)
    assert run(decoder) == dict.fromkeys("abc", ([1, 0], "stop"))
    assert below.told() == [("open", 0, 9, 2)]
    decoder.extend("b", [3], 20)
    decoder.extend("a", [2], 20)
    decoder.extend("c", [3], 20)
    assert run(decoder) == {"b": ([2, 1, 0], "stop"), "a": ([1, 0], "stop"), "c": ([2, 1, 0], "stop")}
    assert below.told() == [("extend", 0, 3), ("open", 1, 9, 2, 1, 0, 2)]
    for key in "abc":
        decoder.close(key)
    assert below.told() == [("close", 1), ("close", 0)] and not below._ids


def test_what_was_decoded_is_remembered_and_handed_over_before_the_next_step(below, decoder):
    decoder.open("a", [5, 1], GREEDY, 9)
    assert run(decoder) == {"a": ([0], "stop")}
    decoder.close("a")
    decoder.open("other", [4], GREEDY, 9)
    decoder.open("b", [5, 1], Sampling(0.0, 2), 9)
    decoder.open("c", [5, 1], GREEDY, 9)
    decoder.close("c")
    below.told()
    assert decoder.step() == [("b", Segment([0], [-0.0], "stop"))] and below.asked == []
    decoder.extend("b", [1], 9)
    assert below.told() == [("open", 2, 5, 1, 0, 1)]


def test_other_limits_and_other_noise_are_other_threads(below, decoder):
    for key, (noise, limit) in enumerate([(GREEDY, 9), (GREEDY, 3), (Sampling(1.0, 1), 9),
                                          (Sampling(1.0, 2), 9), (Sampling(1.0, 1), 9)]):  # fmt: skip
        decoder.open(key, [5, 2], noise, limit)
    stopped = run(decoder)
    assert stopped == {0: ([1, 0], "stop"), 1: ([1], "length"), **dict.fromkeys([2, 3, 4], ([1, 0], "stop"))}
    assert [call[1] for call in below.told()] == [0, 1, 2, 3]
    decoder.open(5, [5, 2], Sampling(1.0, 1), 9)
    assert below.told() == [("open", 4, 5, 2)], "what was sampled is not remembered"


def test_a_thread_is_decoded_as_far_as_one_of_its_sharers_needs(below, decoder):
    for key in "abc":
        decoder.open(key, [7], GREEDY, 20)
    decoder.shorten("a", 3)
    decoder.shorten("b", 5)
    assert below.told() == [("open", 0, 7)]
    decoder.close("c")
    assert below.told() == [("shorten", 0, 5)]
    decoder.open("d", [7], GREEDY, 20)
    assert below.told() == [("open", 1, 7)], "the first one is to be cut"
    assert run(decoder) == {"a": ([6, 5], "length"), "b": ([6, 5, 4, 3], "length"),
                            "d": ([6, 5, 4, 3, 2, 1, 0], "stop")}  # fmt: skip
    decoder.extend("a", [2], 20)
    assert below.told() == [("open", 2, 7, 6, 5, 2)], "what it shared went further than itself"
    decoder.close("b")
    assert below.told() == [("close", 0)]
    decoder.open("e", [7], GREEDY, 20)
    decoder.shorten("e", 4)
    assert run(decoder) == {"e": ([6, 5, 4], "length"), "a": ([1, 0], "stop")}
    assert below.told() == []


def test_a_thread_is_closed_when_nobody_waits_for_it(below, decoder):
    for key in "ab":
        decoder.open(key, [7], GREEDY, 20)
    decoder.step()
    decoder.close("a")
    assert below.told() == [("open", 0, 7)]
    decoder.close("b")
    assert below.told() == [("close", 0)] and not decoder.busy
    decoder.open("a", [7], GREEDY, 20)
    assert below.told() == [("open", 1, 7)], "what was not decoded to its end is not known"


def test_the_segments_that_are_remembered_are_the_last_few(below, decoder, monkeypatch):
    monkeypatch.setattr(shared, "KEPT", 2)
    for number in (1, 2, 3):
        decoder.open(number, [number], GREEDY, 20)
        run(decoder)
    below.told()
    for number in (3, 2, 1):
        decoder.open(-number, [number], GREEDY, 20)
    assert below.told() == [("open", 3, 1)]


def test_misuse_is_an_error_that_changes_nothing(below, decoder):
    decoder.open("a", [2], GREEDY, 9)
    for misuse in (
        lambda: decoder.open("a", [2], GREEDY, 9), lambda: decoder.open("b", [2, 1], GREEDY, 2),
        lambda: decoder.extend("a", [1], 9), lambda: decoder.extend("b", [1], 9),
        lambda: decoder.shorten("a", 1), lambda: decoder.shorten("b", 2), lambda: decoder.close("b"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"thread '.'|no room"):
            misuse()
    assert run(decoder) == {"a": ([1, 0], "stop")}
    with pytest.raises(ValueError, match="no room"):
        decoder.extend("a", [1], 3)
    decoder.shorten("a", 2)
    decoder.extend("a", [1], 9)
    assert run(decoder) == {"a": ([0], "stop")}


@settings(max_examples=40, **health)
@given(plans=st.lists(threads(), min_size=1, max_size=5), slots=st.integers(1, 5))
def test_any_schedule_of_equal_threads(tiny_llama, plans, slots):
    """Two of each, opened at the same time or not; to the bit what they are when each is decoded alone."""
    model = tiny_llama(VOCABULARY, WINDOW, num_attention_heads=4, num_key_value_heads=2)
    plans = plans + [plan | {"opened_at": 12 - plan["opened_at"]} for plan in plans]
    check_decoder(model, SharedDecoder(SlotEngine(model, STOP, slots, WINDOW)), plans)
    together = play(SharedDecoder(SlotEngine(model, STOP, slots, WINDOW)), plans)
    apart = play(SlotEngine(model, STOP, slots, WINDOW), plans)
    for key in together.keys() & apart.keys():
        assert together[key] == apart[key]
