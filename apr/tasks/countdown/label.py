"""What is known of a child for certain: whether numbers reach a target is found by trying everything."""

from collections import Counter
from collections.abc import Iterable, Sequence

from apr.language import Malformed
from apr.language.vocabulary import BaseVocabulary
from apr.tasks.countdown.operation import Operation
from apr.tasks.countdown.problem import Problem
from apr.tasks.countdown.solvable import solvable
from apr.tasks.countdown.verify import arithmetic_error, verify
from apr.tasks.countdown.words import read_child, read_return
from apr.tasks.task import NOTHING_KNOWN, Label


def label(
    vocabulary: BaseVocabulary, problem: Problem, prompt: Sequence[int], returned: Sequence[int] | None
) -> Label:
    """Returns the label of a child that is prompted with states from the problem on.

    Its sub-problem is the target and the numbers of the last state; what it returns are the operations that
    it was told and, behind them, a solution of that. Values are unbounded, as for the verifier.
    """
    child = read_child(vocabulary, prompt)
    if isinstance(child, Malformed):
        return NOTHING_KNOWN
    target, lines = child
    told, numbers = [operation for operation, _ in lines], tuple(sorted(lines[-1][1]))
    if len(numbers) > len(problem.numbers):  # of any number of numbers nobody could say whether they reach it
        return NOTHING_KNOWN
    can = solvable(numbers, target, None)
    follows = target == problem.target and _follows(problem.numbers, lines)
    if returned is None or isinstance(said := read_return(vocabulary, returned), Malformed):
        right = False
    else:
        right = not can if said is None else _solves(numbers, target, told, said)
    return Label(worth=can and follows, solvable=can, right=right)


def _follows(numbers: Sequence[int], lines: Iterable[tuple[Operation, list[int]]]) -> bool:
    """Whether each state is left by a legal operation on two numbers of the one before."""
    state = Counter(numbers)
    for operation, after in lines:
        taken = Counter((operation.left, operation.right))
        if not taken <= state or arithmetic_error(operation):
            return False
        state = state - taken + Counter([operation.result])
        if state != Counter(after):
            return False
    return True


def _solves(numbers: tuple[int, ...], target: int, told: list[Operation], said: list[Operation]) -> bool:
    own = said[len(told) :]
    if said[: len(told)] != told:
        return False
    return verify(Problem("", numbers, target), own).strict if own else numbers == (target,)
