"""A Countdown problem: reach the target with every number exactly once (paper, section 4.1)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from apr.core.errors import DataError, quoted
from apr.core.files import read_rows
from apr.tasks.countdown.solvable import solvable

PROBLEM_SCHEMA = pa.schema(
    [("problem_id", pa.string()), ("numbers", pa.list_(pa.int32())), ("target", pa.int32())]
)
MOST_NUMBERS = 6
"""Numbers of a problem in a file: whether seven reach a target takes seconds to say."""
NUMBER = "[0-9]{1,100}"
TEXT = re.compile(rf"\s*({NUMBER}(?:[\s,]+{NUMBER})+)\s*(?:->|=)\s*({NUMBER})\s*")


@dataclass(frozen=True, slots=True)
class Problem:
    """`numbers` ascend in whatever order they are given, so that `(numbers, target)` is the key by which
    problems are the same."""

    id: str
    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", tuple(sorted(self.numbers)))


def problem_of_text(text: str) -> Problem:
    """Returns the problem that "3 5 9 12 -> 27" says, with a solution or without. Raises `DataError`."""
    found = TEXT.fullmatch(text)
    if found is None:
        raise DataError(f"{quoted(text)}: not a problem; allowed: numbers, an arrow, a target, as in "
                        "'3 5 9 -> 27', each of at most 100 digits")  # fmt: skip
    return Problem("problem", tuple(map(int, re.findall(NUMBER, found[1]))), int(found[2]))


def problem_of_row(path: str | Path, row: Mapping[str, Any]) -> Problem:
    """Returns the problem of a row of `PROBLEM_SCHEMA`.

    Raises `DataError`, naming the file it is of, if it is none or has no solution.
    """
    name, numbers, target = row["problem_id"], row["numbers"], row["target"]
    if not name:
        raise DataError(f"{path}: problem id {name!r} is not allowed; allowed: a text that is not empty")
    values = [*(numbers or ()), target]
    if not 2 < len(values) <= MOST_NUMBERS + 1 or any(value is None or value < 0 for value in values):
        raise DataError(f"{path}: problem {name!r} is not a Countdown problem: {quoted(numbers)} -> {target}"
                        f"; allowed: 2 to {MOST_NUMBERS} numbers and a target, all from 0 on")  # fmt: skip
    problem = Problem(name, tuple(numbers), target)
    if not solvable(problem.numbers, target, None):
        raise DataError(f"{path}: problem {name!r} has no solution: {list(problem.numbers)} -> {target}")
    return problem


def read_problems(path: str | Path) -> list[Problem]:
    """The problems of a Parquet file in its order.

    Raises `DataError` if the file is unreadable or empty, an id occurs twice, or a problem has no solution.
    """
    problems = [problem_of_row(path, row) for row in read_rows(path, PROBLEM_SCHEMA)]
    if not problems:
        raise DataError(f"{path}: holds no problems")
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(f"{path}: problem id {problem.id!r} occurs twice")
        seen.add(problem.id)
    return problems
