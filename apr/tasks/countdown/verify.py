"""The judge of solutions, and when two of them are one."""

from collections import Counter
from collections.abc import Sequence

from apr.tasks.countdown.operation import Operation
from apr.tasks.countdown.problem import Problem
from apr.tasks.task import Verdict


def arithmetic_error(operation: Operation) -> str | None:
    """Returns what is wrong with an operation in itself, None if that is nothing."""
    left, op, right, result = operation
    if op == "/":
        if right == 0:
            return "division by zero"
        value, rest = divmod(left, right)
        if rest:
            return "division is not exact"
    else:
        value = {"+": left + right, "-": left - right, "*": left * right}[op]
    if value < 0:
        return "negative result"
    return None if value == result else f"result is {value}"


def verify(problem: Problem, operations: Sequence[Operation]) -> Verdict:
    """Judges a solution.

    Strict: every given number and every intermediate result is used exactly once, each operation is
    exact integer arithmetic without negative results, and the last result is the target.
    Lenient, as the reference scores its serial runs: numbers may be reused or left over, everything
    else holds (operands are given numbers or earlier results).
    """
    if not operations:
        return Verdict(False, False, "no operations")
    available = Counter(problem.numbers)
    known = set(problem.numbers)
    fault = None
    for index, operation in enumerate(operations, start=1):
        error = arithmetic_error(operation)
        if error:
            return Verdict(False, False, f"operation {index}: {error}")
        if operation.left not in known or operation.right not in known:
            return Verdict(False, False, f"operation {index}: operand never seen")
        used = Counter((operation.left, operation.right))
        if fault is None and any(available[number] < count for number, count in used.items()):
            fault = f"operation {index}: operand already used"
        available.subtract(used)
        available[operation.result] += 1
        known.add(operation.result)
    if operations[-1].result != problem.target:
        return Verdict(False, False, f"last result is {operations[-1].result}, not {problem.target}")
    if fault is None and len(operations) != len(problem.numbers) - 1:
        fault = "numbers left over"
    return Verdict(fault is None, True, fault or "solved")


def expression(operations: Sequence[Operation]) -> str:
    """The expression that the last operation computes, operands of + and * sorted.

    Two answers that differ only in the order of independent operations, or of commuting operands, agree.
    """
    made: dict[int, list[str]] = {}
    text = ""
    for left, op, right, result in operations:
        sides = [made[value].pop(0) if made.get(value) else str(value) for value in (left, right)]
        if op in "+*":
            sides.sort()
        text = f"({sides[0]} {op} {sides[1]})"
        made.setdefault(result, []).append(text)
    return text
