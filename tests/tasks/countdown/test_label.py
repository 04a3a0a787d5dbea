"""What is known of a child: by hand, and of what the solver's children do."""

import pytest

from apr.core.seeds import derive_rng
from apr.tasks.countdown.label import label
from apr.tasks.countdown.problem import Problem
from apr.tasks.countdown.settings import Solver
from apr.tasks.countdown.solver import solve
from apr.tasks.task import Label
from tests.tasks.countdown.test_solvers import LANGUAGE

PROBLEM = Problem("p", (2, 2, 4), 16)
SUM, EIGHT, TWO = "16 :1 2 + 2 = 4 4", "16 :1 4 * 2 = 8 2", "16 :1 4 - 2 = 2 2"
WORTH, CANNOT, NOTHING = (True, True), (False, False), (False, False)


def said(prompt, returned, problem=PROBLEM):
    encode = LANGUAGE.vocabulary.encode
    ids = None if returned is None else encode(returned)
    return label(LANGUAGE.vocabulary, problem, encode(f"<child> {prompt} go"), ids)


@pytest.mark.parametrize(
    ("prompt", "returned", "expected"),
    [
        (SUM, "2 + 2 = 4 , 4 * 4 = 16", (*WORTH, True)),
        (SUM, "none", (*WORTH, False)),
        (SUM, None, (*WORTH, False)),
        (SUM, "4 * 4 = 16", (*WORTH, False)),  # leaves out what it was told
        (SUM, "4 * 2 = 8 , 8 * 2 = 16", (*WORTH, False)),  # solves the problem, but not by its message
        (SUM, "2 + 2 = 4 , 4 * 4 = 15", (*WORTH, False)),
        (SUM, "2 + 2 = 4 , 4 + 4 = 8 , 8 + 8 = 16", (*WORTH, False)),  # takes a number twice
        (SUM, "2 + 2 = 4", (*WORTH, False)),
        (SUM, "2 + 2 = 4 , list", (*WORTH, False)),
        (TWO, "none", (*CANNOT, True)),
        (TWO, "4 - 2 = 2 , 2 * 2 = 16", (*CANNOT, False)),
        (TWO, None, (*CANNOT, False)),
        ("16 :1 2 + 4 = 6 2", "none", (*CANNOT, True)),
        ("16 :1 4 * 2 = 8 2 :2 8 * 2 = 16", "4 * 2 = 8 , 8 * 2 = 16", (*WORTH, True)),
        ("16 :1 4 * 2 = 8 2 :2 8 + 2 = 10", "none", (*CANNOT, True)),
        # Can be done, but does not follow from the problem:
        ("16 :1 2 + 2 = 4 4 4", "2 + 2 = 4 , 4 + 4 = 8 , 8 + 4 = 12", (False, False, False)),
        ("16 :1 4 * 4 = 16 1", "4 * 4 = 16 , 16 * 1 = 16", (False, True, True)),
        ("16 :1 2 + 2 = 8 2", "2 + 2 = 8 , 8 * 2 = 16", (False, True, True)),
        ("8 :1 2 + 2 = 4 4", "2 + 2 = 4 , 4 + 4 = 8", (False, True, True)),
        ("16 :1 2 - 4 = 8 2", "2 - 4 = 8 , 8 * 2 = 16", (False, True, True)),
        # No sub-problem:
        ("16 :1 2 + 2 = 4 4 4 4", "none", (*NOTHING, False)),
        ("16 :2 2 + 2 = 4 4", "none", (*NOTHING, False)),
        ("16 :1 2 + 2 4", "none", (*NOTHING, False)),
        ("16", "none", (*NOTHING, False)),
        (":1 2 + 2 = 4 4", "none", (*NOTHING, False)),
    ],
)
def test_a_label_by_hand(prompt, returned, expected):
    assert said(prompt, returned) == Label(*expected)


def test_an_operation_may_be_written_either_way_round():
    problem = Problem("p", (2, 4, 5), 11)
    assert said("11 :1 2 + 4 = 6 5", "2 + 4 = 6 , 6 + 5 = 11", problem) == Label(True, True, True)


@pytest.mark.parametrize("depth", [0, 1])
def test_children_of_the_solver_are_labelled_as_it_says(depth):
    method = Solver(solver="apr", beam=(1, 10), child_beam=100, spawn_depth=depth, promising=0.7)
    found = []
    for number in range(60):
        rng = derive_rng(5, number)
        problem = Problem("p", tuple(rng.randint(1, 12) for _ in range(4)), rng.randint(10, 30))
        for thread in solve(LANGUAGE, problem, method, None, rng)[1:]:
            prompt = thread.ids[: thread.ends[0]]
            label_ = label(LANGUAGE.vocabulary, problem, prompt, LANGUAGE.syntax.returned(thread.ids))
            found.append((label_.worth, label_.right, thread.solved))
            assert label_.worth == label_.solvable, "every message follows from the problem"
            assert not thread.solved or label_ == Label(True, True, True)
            assert label_.right == (label_.solvable == thread.solved)
    assert {worth for worth, _, _ in found} == {True, False}
    assert sum(right for _, right, _ in found) > 0.9 * len(found), "of such a width hardly any misses one"
