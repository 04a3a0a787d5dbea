"""The replay of thread trees, by hand."""

import pytest

from apr.engine.interface import Segment
from apr.evaluation.latency_model import measure_costs
from apr.rollouts.replay import Costs, Part, in_steps, parts_of, replay
from apr.rollouts.rollout import Rollout, Spawn, Thread

FREE = {1: 0.0}
EVEN = Costs({1: 1.0, 2: 1.0}, FREE, {4: 1.0, 8: 1.0})
"""A step takes a second, whatever is in it."""
DEAR = Costs({1: 1.0, 2: 2.0}, FREE, {2: 1.5, 4: 2.5})
"""Another thread takes another second, another token that is read half of one."""
FAMILY = [[Part(3, 2, [1, 2]), Part(4, 3, [])], [Part(2, 5, [])], [Part(2, 1, [])]]


def test_costs_between_and_beyond_what_was_measured():
    costs = Costs({1: 1.0, 4: 4.0, 8: 6.0}, {1: 0.5, 4: 2.0}, {10: 2.0, 20: 4.0})
    assert [costs.step(threads, 0, 0) for threads in (0, 1, 2, 8, 12)] == [1, 1, 2, 6, 8]
    assert costs.step(1, 0, 15) == 1 + (3 - 1) and costs.step(4, 0, 30) == 4 + (6 - 1)
    assert [costs.step(threads, 10, 0) for threads in (1, 2, 4, 8)] == [1 + 5, 2 + 10, 4 + 20, 6 + 20]
    assert Costs({1: 1.0}, FREE, {10: 2.0}).step(5, 7, 90) == 1 + (2 - 1)


def test_context_grows_by_what_is_read_and_sampled():
    costs = Costs({1: 1.0}, {1: 0.125}, {1: 1.0})
    # the root samples behind 3 and 4 tokens, a child behind 2, the root again behind 5 + 4 and one more
    tree = [[Part(3, 2, [1]), Part(4, 2, [])], [Part(2, 1, [])]]
    assert replay(tree, costs, 1) == 5 + 0.125 * (3 + 4 + 2 + 9 + 10)


def test_a_serial_thread_takes_a_step_per_token():
    assert replay([[Part(5, 7, [])]], EVEN, 1) == 7
    # the first step reads 4 tokens more: 1 + (2.5 - 1)
    assert replay([[Part(5, 7, [])]], DEAR, 4) == 7 + 1.5


@pytest.mark.parametrize("devices", [1, 2, 16])
def test_where_threads_are_free_only_the_longest_chain_counts(devices):
    assert replay(FAMILY, EVEN, devices) == 2 + 5 + 3


def test_a_family_on_one_device_and_on_two():
    # root 1.5 + 1; children 2 + (1.5 - 1), then 4 x 1 for the longer one; root again 1 + (2 - 1) + 2
    assert replay(FAMILY, DEAR, 1) == 2.5 + 2.5 + 4 + 4
    # on two devices the children do not share a step; a single token more to read costs nothing here
    assert replay(FAMILY, DEAR._replace(prefill={1: 1.0, 3: 2.0}), 2) == 2.5 + (1 + 4) + (2 + 2)


def test_threads_that_begin_together_are_dealt_to_devices():
    samples = [[Part(2, 3, [])], [Part(2, 5, [])], [Part(2, 1, [])]]
    # the first step reads a token more of each: 3 + (2 - 1); then two threads twice, and the longest alone
    assert replay(samples, DEAR._replace(decode={1: 1.0, 2: 2.0, 3: 3.0}), 1, 3) == 4 + 2 * 2 + 2
    # the first and the third on one device, so the second is the last to end
    assert replay(samples, EVEN, 2, 3) == 5 == replay(samples, EVEN, 8, 3)
    assert replay(samples[1:2], DEAR, 1) == replay(samples[1:2], DEAR, 8, 1)


def test_a_family_in_steps_of_one_thread():
    """Half a step for each token more: of all that is read but a token of each thread, and of further
    threads."""
    # root 1 + 2 / 2, and 1; both children 1 + 1 / 2 + 2 / 2, then 4 for the longer one; root 1 + 3 / 2, and 2
    assert replay(FAMILY, in_steps(0.5), 1) == 3 + (2.5 + 4) + 4.5
    # on two devices they share no step: 1 + 1 / 2, and 4
    assert [replay(FAMILY, in_steps(0.5), devices) for devices in (2, 16)] == [3 + (1.5 + 4) + 4.5] * 2
    assert replay(FAMILY, in_steps(0.0), 1) == 2 + 5 + 3, "the longest chain"


def test_a_thread_that_comes_within_a_step_waits_for_its_end():
    costs = Costs({1: 1.0, 2: 1.25}, FREE, {1: 1.0})
    tree = [[Part(1, 1, [1, 2, 3])], [Part(1, 6, [])], [Part(1, 3, [4, 5, 6])], [Part(1, 6, [])],
            [Part(1, 2, [])], [Part(1, 2, [])], [Part(1, 5, [])]]  # fmt: skip
    # 1 and 3 share the first device, 2 has the other to itself, where it spawns at 1 + 3; the last of its
    # three children comes to the first device within its third step and joins the fourth, of 1.5, at 4.75
    assert replay(tree, costs, 2) == 1 + 3 * 1.25 + 3 * 1.5 + 2


def test_grandchildren_and_several_spawns():
    tree = [[Part(1, 1, [1]), Part(1, 1, [2]), Part(1, 1, [])], [Part(1, 2, [3]), Part(1, 1, [])],
            [Part(1, 4, [])], [Part(1, 3, [])]]  # fmt: skip
    assert replay(tree, EVEN, 3) == 1 + (2 + 3 + 1) + 1 + 4 + 1


def test_parts_are_read_off_a_rollout():
    flags = [False] * 3 + [True] * 2 + [False] * 4 + [True] * 3
    root = Thread(0, -1, 0, 3, list(range(12)), flags, [], spawns=[Spawn(5, [1, 2])])
    child = Thread(1, 0, 1, 2, [1] * 7, [False] * 2 + [True] * 5, [])
    never = Thread(2, 0, 1, 2, [1] * 2, [False] * 2, [])
    assert parts_of(Rollout("p", [root, child, never])) == [
        [Part(3, 2, [1, 2]), Part(4, 3, [])], [Part(2, 5, [])], [Part(2, 0, [])],
    ]  # fmt: skip


def test_steps_are_timed_batch_by_batch_and_prompt_by_prompt():
    class Decoder:
        """A step takes a second, one more per thread, and 1/64 per token before it; a call makes up to three,
        until a thread ends."""

        capacity, now = 4, 0.0

        def __init__(self):
            self.lengths, self.fed, self.handed, self.limits, self.steps = {}, {}, {}, {}, 0

        def open(self, key, prompt, sampling, limit):
            assert not set(prompt) & {0, 1} and len(prompt) < limit <= 200 and sampling.temperature == 0
            self.lengths[key], self.fed[key] = len(prompt), 0
            self.handed[key], self.limits[key] = len(prompt), limit

        def extend(self, key, ids, limit):
            assert ids == [] and self.lengths[key] < limit <= 200 and key not in self.limits
            self.handed[key], self.limits[key] = self.lengths[key], limit

        def close(self, key):
            del self.lengths[key], self.fed[key]

        @property
        def busy(self):
            return bool(self.limits)

        def step(self):
            stopped, end = [], self.steps + 3
            while not stopped and self.steps < end:
                live, self.steps = list(self.limits), self.steps + 1
                self.now += 1 + len(live) + sum(self.lengths[key] for key in live) / 64
                self.now += sum(self.lengths[key] - self.fed[key] - 1 for key in live)
                for key in live:
                    self.fed[key], self.lengths[key] = self.lengths[key], self.lengths[key] + 1
                    if self.lengths[key] == self.limits[key] or (key == 0 and self.steps % 7 == 0):
                        count = self.lengths[key] - self.handed[key]
                        stopped.append((key, Segment([0] * count, [0.0] * count, "stop")))
                        del self.limits[key]
            return stopped

    decoder = Decoder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apr.evaluation.latency_model.time.perf_counter", lambda: decoder.now)
        costs = measure_costs(decoder, 200, 10, frozenset({0, 1}))
    assert not decoder.lengths
    assert costs.decode == pytest.approx({1: 2, 2: 3, 4: 5})
    assert costs.context == pytest.approx({1: 1 / 64, 2: 1 / 64, 4: 1 / 64})
    assert costs.prefill == pytest.approx({size: 2 + size / 64 + size - 1 for size in (8, 16, 32, 64, 128)})
