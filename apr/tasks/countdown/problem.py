"""A Countdown problem: reach the target with every number exactly once (paper, section 4.1)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from apr.core.errors import DataError
from apr.core.files import read_rows
from apr.tasks.countdown.solvable import solvable

PROBLEM_SCHEMA = pa.schema(
    [("problem_id", pa.string()), ("numbers", pa.list_(pa.int32())), ("target", pa.int32())]
)


class Problem(NamedTuple):
    """`numbers` ascend, so that `(numbers, target)` is the key by which problems are the same."""

    id: str
    numbers: tuple[int, ...]
    target: int


def problem_of(row: Mapping[str, Any]) -> Problem:
    """The problem of a row of `PROBLEM_SCHEMA`."""
    return Problem(row["problem_id"], tuple(row["numbers"]), row["target"])


def check_problem(path: str | Path, problem: Problem) -> None:
    """Raises `DataError`, naming the file it is of, if a problem is none or has no solution."""
    if len(problem.numbers) < 2 or min(problem.numbers) < 0 or problem.target < 0:
        raise DataError(f"{path}: problem {problem.id!r} is not a Countdown problem: {problem.numbers}")
    if not solvable(tuple(sorted(problem.numbers)), problem.target, None):
        raise DataError(f"{path}: problem {problem.id!r} has no solution: "
                        f"{list(problem.numbers)} -> {problem.target}")  # fmt: skip


def read_problems(path: str | Path) -> list[Problem]:
    """The problems of a Parquet file in its order.

    Raises `DataError` if the file is unreadable or empty, an id occurs twice, or a problem has no solution.
    """
    problems = [problem_of(row) for row in read_rows(path, PROBLEM_SCHEMA)]
    if not problems:
        raise DataError(f"{path}: holds no problems")
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(f"{path}: problem id {problem.id!r} occurs twice")
        seen.add(problem.id)
        check_problem(path, problem)
    return problems
