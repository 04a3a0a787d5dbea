"""The strict verifier against an independent evaluator, and each of its reasons."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.tasks.countdown.operation import Operation, legal_operations
from apr.tasks.countdown.problem import Problem
from apr.tasks.countdown.verify import verify

PROBLEM = Problem("p", (3, 5, 9, 12), 27)
SOLUTION = [Operation(9, "/", 3, 3), Operation(5, "*", 3, 15), Operation(15, "+", 12, 27)]


def test_a_solution_is_solved():
    assert verify(PROBLEM, SOLUTION) [:3] == (True, True, "solved")


@pytest.mark.parametrize(
    ("operations", "lenient", "reason"),
    [
        ([], False, "no operations"),
        ([Operation(12, "+", 9, 22)], False, "operation 1: result is 21"),
        ([Operation(3, "-", 5, -2)], False, "operation 1: negative result"),
        ([Operation(5, "/", 3, 1)], False, "operation 1: division is not exact"),
        ([Operation(5, "/", 0, 1)], False, "operation 1: division by zero"),
        ([Operation(7, "+", 3, 10)], False, "operation 1: operand never seen"),
        ([Operation(12, "+", 9, 21)], False, "last result is 21, not 27"),
        ([Operation(9, "*", 3, 27)], True, "numbers left over"),
        ([Operation(9, "+", 9, 18), Operation(18, "+", 9, 27)], True, "operation 1: operand already used"),
        ([Operation(9, "+", 5, 14), Operation(14, "+", 9, 23), Operation(23, "-", 5, 18),
          Operation(18, "+", 9, 27)], True, "operation 2: operand already used"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(operations, lenient, reason):
    assert verify(PROBLEM, operations)[:3] == (False, lenient, reason)


def test_a_number_that_occurs_twice_may_be_used_twice():
    problem = Problem("p", (4, 4), 8)
    assert verify(problem, [Operation(4, "+", 4, 8)]).strict


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.data())
@settings(max_examples=300)
def test_random_derivations_are_accepted_and_mutations_judged_like_a_plain_evaluator(numbers, data):
    left, operations = list(numbers), []
    while len(left) > 1:
        i, j = data.draw(st.permutations(range(len(left))))[:2]
        operation = data.draw(st.sampled_from(list(legal_operations(left[i], left[j], None))))
        left = [n for k, n in enumerate(left) if k not in (i, j)] + [operation.result]
        operations.append(operation)
    problem = Problem("p", tuple(sorted(numbers)), left[0])
    assert verify(problem, operations).strict
    index = data.draw(st.integers(0, len(operations) - 1))
    change = {data.draw(st.sampled_from(["left", "right", "result"])): data.draw(st.integers(0, 15))}
    operations[index] = operations[index]._replace(**change)
    assert verify(problem, operations).strict == _plainly_solved(problem, operations)


def _plainly_solved(problem, operations):
    """By removing from a list, with Python's own arithmetic."""
    left = list(problem.numbers)
    for a, op, b, result in operations:
        for operand in (a, b):
            if operand not in left:
                return False
            left.remove(operand)
        if op == "/" and (b == 0 or a / b != a // b):
            return False
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else -1}[op]
        if value != result or value < 0:
            return False
        left.append(result)
    return left == [problem.target]
