"""A finished rollout -> a row of the evaluation: verdicts and the token ledger."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from apr.language import Language
from apr.language.events import Malformed
from apr.rollouts.rollout import Rollout, Status
from apr.tasks.countdown import Operation, Problem, verify

NO_SOLUTION = "none"

LEDGER = ("prompt", "sampled", "injected", "total", "sequential", "longest", "children", "depth",
          "malformed_threads", "truncated_threads", "threads")  # fmt: skip
"""Tokens by origin; total and sequential tokens (PAPER, definitions); tokens of the longest thread, prompt
included; child threads; deepest thread; threads that broke the rules, and that ran out of window or tokens
(those that never started for want of tokens included); all threads."""

EVAL_SCHEMA = pa.schema({
    "model": pa.string(), "stage": pa.string(), "problem_id": pa.string(), "condition_kind": pa.string(),
    "condition_amount": pa.int32(), "temperature": pa.float64(), "sample": pa.int32(), "join": pa.string(),
    "status": pa.string(), "answer": pa.string(), "expression": pa.string(), "strict": pa.bool_(),
    "lenient": pa.bool_(), "reason": pa.string(), **{name: pa.int32() for name in LEDGER},
})  # fmt: skip
"""`answer` is the root's operations as written, "none" where it declares no solution, null where it gives no
answer; `expression` is the canonical form of its operations, null where there are none."""


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


def verdict(language: Language, problem: Problem, rollout: Rollout) -> dict[str, Any]:
    """The columns `status` to `reason`. What the model gets wrong is a reason, never an error."""
    root = rollout.threads[0]
    failed: dict[str, Any] = {"status": str(root.status), "answer": None, "expression": None}
    failed |= {"strict": False, "lenient": False}
    if root.status != Status.DONE:
        return failed | {"reason": root.reason}
    answer = language.answer(root.ids)
    if isinstance(answer, Malformed):
        return failed | {"status": str(Status.MALFORMED), "reason": answer.reason}
    if answer is None:
        return failed | {"answer": NO_SOLUTION, "reason": "declares no solution"}
    judged = verify(problem, answer)
    text = ", ".join(f"{left} {op} {right} = {result}" for left, op, right, result in answer)
    return failed | {"answer": text, "expression": expression(answer)} | judged._asdict()


def ledger(rollout: Rollout) -> dict[str, int]:
    """The columns of `LEDGER`."""
    usage = rollout.usage
    statuses = [thread.status for thread in rollout.threads]
    counted = {
        "malformed_threads": statuses.count(Status.MALFORMED),
        "truncated_threads": statuses.count(Status.TRUNCATED) + statuses.count(Status.CANCELLED),
        "threads": len(statuses),
    }
    return {name: counted[name] if name in counted else getattr(usage, name) for name in LEDGER}
