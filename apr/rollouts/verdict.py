"""What a finished rollout is worth: its root's answer, judged by the task's verifier."""

from collections.abc import Sequence
from typing import NamedTuple

from apr.language import Language
from apr.language.events import Malformed
from apr.rollouts.rollout import Rollout, Status
from apr.tasks.countdown import Operation, Problem, verify

NO_SOLUTION = "none"


class Judgement(NamedTuple):
    """What is said of a rollout, in evaluations too. What the model gets wrong is a reason, never an error.

    `answer` is the root's operations as written, "none" where it declares no solution, None where it gives no
    answer; `expression` is the canonical form of its operations, None where there are none. `strict` is the
    verdict that counts, `lenient` the paper's reference rule.
    """

    status: str
    answer: str | None = None
    expression: str | None = None
    strict: bool = False
    lenient: bool = False
    reason: str = ""


def judge(language: Language, problem: Problem, rollout: Rollout) -> Judgement:
    """Returns the verdict on the root's answer; one that gives none is not solved (the paper's rule)."""
    root = rollout.threads[0]
    if root.status != Status.DONE:
        return Judgement(str(root.status), reason=root.reason)
    answer = language.answer(root.ids)
    if isinstance(answer, Malformed):
        return Judgement(str(Status.MALFORMED), reason=answer.reason)
    if answer is None:
        return Judgement(str(root.status), NO_SOLUTION, reason="declares no solution")
    text = ", ".join(f"{left} {op} {right} = {result}" for left, op, right, result in answer)
    return Judgement(str(root.status), text, expression(answer), *verify(problem, answer))


def expression(operations: Sequence[Operation]) -> str:
    """Returns the expression that the last operation computes, operands of + and * sorted.

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
