"""When a training ends, by a clock of its own."""

from functools import partial
from types import SimpleNamespace

import pytest

from apr.core.errors import ParamsError
from apr.training.deadline import Deadline


def rate(step: int, *, num_warmup_steps: int, num_training_steps: int) -> tuple[int, int]:
    return num_warmup_steps, num_training_steps


def constant(step: int, *, num_warmup_steps: int) -> int:
    return num_warmup_steps


def run(monkeypatch, seconds: list[float], end: float, updates: int = 1, rule=rate, whole: int = 40):
    """Returns the number of steps, and of warm-up and all steps by the rule, after each of the steps."""
    clock = iter(seconds)
    monkeypatch.setattr("apr.training.deadline.time", SimpleNamespace(monotonic=lambda: next(clock)))
    state = SimpleNamespace(global_step=0, max_steps=whole)
    control = SimpleNamespace(should_training_stop=False, should_log=False)
    given = {"num_warmup_steps": 4} | ({"num_training_steps": whole} if rule is rate else {})
    scheduler = SimpleNamespace(lr_lambdas=[partial(rule, **given)] * 2)
    deadline, seen = Deadline(end, updates), []
    deadline.on_train_begin(None, state, control, lr_scheduler=scheduler)
    while not control.should_training_stop:
        state.global_step += 1
        deadline.on_step_end(None, state, control, lr_scheduler=scheduler)
        first, second = (rule(0) for rule in scheduler.lr_lambdas)
        assert first == second and control.should_log == control.should_training_stop
        seen.append((state.max_steps, first))
    return seen


def test_the_rate_of_all_steps_but_the_first_decides(monkeypatch):
    """The first ends at 50 s, the others take 1, 1, 4, 2, ... seconds, of 60."""
    seen = run(monkeypatch, [50, 51, 52, 56, 58, 60], 60)
    assert [steps for steps, _ in seen] == [40, 2 + 9, 3 + 8, 4 + 2, 5 + 1, 6]
    assert [rule for _, rule in seen] == [(4, 40), (1, 11), (1, 11), (1, 6), (1, 6), (1, 6)]


def test_time_that_is_left_over_adds_no_steps(monkeypatch):
    assert [steps for steps, _ in run(monkeypatch, [1, 2, 3], 1000, whole=3)] == [3, 3, 3]


def test_updates_that_make_a_step_are_not_cut(monkeypatch):
    """Two updates a step, which ends at 10, 12, 14, ... seconds; the rate stays what it is."""
    seen = run(monkeypatch, [10, 12, 14, 16], 17, updates=2, rule=constant)
    assert [steps for steps, _ in seen] == [40, 40, 40, 4 + 4, 8, 6 + 2, 8, 8][: len(seen)]
    assert len(seen) == 8 and {rule for _, rule in seen} == {4}


def test_too_late_for_a_second_step(monkeypatch):
    assert [steps for steps, _ in run(monkeypatch, [70], 60)] == [1]


def test_one_process_alone_has_a_deadline(monkeypatch):
    monkeypatch.setattr("apr.training.deadline.world_size", lambda: 2)
    with pytest.raises(ParamsError, match="a deadline: not allowed in several processes"):
        Deadline(1.0)
