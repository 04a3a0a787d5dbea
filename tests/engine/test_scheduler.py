"""The scheduler without a model and without torch: who has a slot, who waits, what a step feeds."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from apr.engine.interface import Sampling
from apr.engine.scheduler import Batch, Scheduler

WINDOW, STOP = 16, 0
COLD = Sampling(0.0, 0)


def make(slots: int, patient: bool = False) -> Scheduler:
    return Scheduler([STOP], 10, slots, WINDOW, patient)


def step(scheduler: Scheduler, *tokens: int) -> dict:
    """Samples `tokens`, or 7 for every live thread. What stopped."""
    slots, stopped = scheduler.schedule()
    scheduler.table.append(slots, np.array(tokens or [7] * len(slots), np.int64), np.zeros(len(slots)))
    return dict(stopped + scheduler.record(slots))


def due(scheduler: Scheduler) -> Batch:
    """What the next step feeds."""
    return scheduler.table.batch(scheduler.schedule()[0])


def test_it_imports_no_torch():
    code = "import sys, apr.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_step_feeds_what_the_cache_lacks():
    scheduler = make(2)
    scheduler.open("a", [5, 6], COLD, WINDOW)
    batch = due(scheduler)
    assert batch.slots.tolist() == [0] and batch.begin.tolist() == [0] and batch.end.tolist() == [2]
    assert batch.ids[0, :2].tolist() == [5, 6]
    scheduler.table.append(batch.slots, np.array([STOP]), np.array([-1.0]))
    ((key, segment),) = scheduler.record(batch.slots)
    assert key == "a" and segment == ([STOP], [-1.0], "stop") and not scheduler.busy
    scheduler.extend("a", [8, 9], WINDOW)
    batch = due(scheduler)
    assert batch.begin.tolist() == [2] and batch.end.tolist() == [5]  # the stop token, and what was joined
    assert batch.ids[0, :5].tolist() == [5, 6, STOP, 8, 9]


def test_lower_ranks_first_within_a_rank_those_that_had_a_slot_then_by_age():
    scheduler = make(1)
    for key, rank in (("first", 1), ("old", 1), ("new", 1), ("low", 0)):
        scheduler.open(key, [5], COLD, WINDOW, rank)
    order = []
    while scheduler.busy:
        for key, _ in step(scheduler, STOP).items():
            order.append(key)
            if key == "low":
                scheduler.extend(key, [6], WINDOW)  # it keeps its slot
            if order.count(key) == 2 or key != "low":
                scheduler.close(key)
    assert order == ["low", "low", "first", "old", "new"]
    scheduler = make(1)
    for key in "ab":
        scheduler.open(key, [5], COLD, WINDOW)
    assert [list(step(scheduler, STOP)) for _ in range(2)] == [["a"], ["b"]]  # a has lost its slot
    scheduler.open("c", [5], COLD, WINDOW)
    scheduler.extend("a", [6], WINDOW)
    scheduler.close("b")
    batch = due(scheduler)
    assert batch.begin.tolist() == [0] and batch.end.tolist() == [3], "a, whole, before c"


def test_threads_wait_until_a_pass_is_worth_it():
    scheduler = make(64, patient=True)
    for key in range(40):
        scheduler.open(key, [5], COLD, WINDOW)
    assert len(scheduler.schedule()[0]) == 40
    for count in (1, 2):
        scheduler.open(count + 100, [5], COLD, WINDOW)
        assert len(scheduler.schedule()[0]) == 40
    scheduler.open("third", [5], COLD, WINDOW)
    assert len(scheduler.schedule()[0]) == 43


def test_a_thread_that_is_shortened_to_its_end_stops_without_a_token():
    scheduler = make(1)
    scheduler.open("a", [5], COLD, WINDOW)
    for _ in range(5):
        assert not step(scheduler)
    scheduler.shorten("a", 3)
    assert step(scheduler) == {"a": ([7, 7], [0.0, 0.0], "length")}
    scheduler.extend("a", [8], WINDOW)
    batch = due(scheduler)
    assert batch.begin.tolist() == [2] and batch.ids[0, 2:4].tolist() == [7, 8]  # what was cut is forgotten


@given(st.lists(st.tuples(st.sampled_from("oecs"), st.integers(0, 7)), max_size=60), st.integers(1, 4))
def test_no_slot_has_two_threads_and_none_waits_for_good(actions, slots):
    scheduler, decoding, stopped = make(slots), {}, {}

    def advance():
        batch = due(scheduler)
        owners = {scheduler._owner[slot].key for slot in batch.slots}
        assert len(owners) == len(batch.slots) <= slots and owners <= set(decoding)
        assert (batch.begin < batch.end).all() and (batch.end < WINDOW).all()
        scheduler.table.append(batch.slots, np.full(len(owners), STOP), np.zeros(len(owners)))
        ended = scheduler.record(batch.slots)
        assert {key for key, _ in ended} == owners
        for key in owners:
            stopped[key] = decoding.pop(key)

    for action, key in actions:
        if action == "o" and key not in decoding and key not in stopped:
            scheduler.open(key, [5] * (1 + key % 3), COLD, WINDOW, key % 2)
            decoding[key] = 0
        elif action == "e" and stopped.get(key, 5) < 5:  # more of them would fill the window
            scheduler.extend(key, [6], WINDOW)
            decoding[key] = stopped.pop(key) + 1
        elif action == "c" and (key in decoding or key in stopped):
            scheduler.close(key)
            decoding.pop(key, None)
            stopped.pop(key, None)
        elif action == "s":
            advance()
    for _ in range(10):
        advance()
    assert not decoding and not scheduler.busy
