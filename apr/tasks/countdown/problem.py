"""A Countdown problem: reach the target with every number exactly once (paper, section 4.1)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from random import Random
from typing import Any

import pyarrow as pa

from apr.core.errors import DataError, ParamsError, quoted
from apr.tasks.countdown.settings import MOST_PRODUCT, CountdownProblems
from apr.tasks.countdown.solvable import solvable

PROBLEM_SCHEMA = pa.schema(
    [("problem_id", pa.string()), ("numbers", pa.list_(pa.int32())), ("target", pa.int32())]
)
MOST_NUMBERS = 6
"""Numbers of a problem in a file: whether seven reach a target takes seconds to say."""
ATTEMPTS = 10_000
"""Draws at most for a new problem with a solution."""
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

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.numbers))} → {self.target}"


def problem_of_text(text: str) -> Problem:
    """Returns the problem that "3 5 9 12 -> 27" says, with a solution or without. Raises `DataError`."""
    found = TEXT.fullmatch(text)
    if found is None:
        raise DataError(f"{quoted(text)}: not a problem; allowed: numbers, an arrow, a target, as in "
                        "'3 5 9 -> 27', each of at most 100 digits")  # fmt: skip
    return Problem("problem", tuple(map(int, re.findall(NUMBER, found[1]))), int(found[2]))


def problem_of_row(row: Mapping[str, Any]) -> Problem:
    """Returns the problem of a row of a file. Raises `DataError` if it is none, or has no solution."""
    numbers, target = row["numbers"], row["target"]
    values = [*(numbers or ()), target]
    if not 2 < len(values) <= MOST_NUMBERS + 1 or any(value is None or value < 0 for value in values):
        raise DataError(f"is not a Countdown problem: {quoted(numbers)} -> {target}; allowed: 2 to "
                        f"{MOST_NUMBERS} numbers and a target, all from 0 on")  # fmt: skip
    if prod(max(2, number) for number in numbers) > MOST_PRODUCT:
        raise DataError(f"is too large: {quoted(numbers)} -> {target}; allowed: a product of at most 2^58")
    problem = Problem(row["problem_id"], tuple(numbers), target)
    if not solvable(problem.numbers, target, None):
        raise DataError(f"has no solution: {list(problem.numbers)} -> {target}")
    return problem


def draw_problem(settings: CountdownProblems, name: str, rng: Random, taken: set[int]) -> Problem:
    """A solvable problem whose key is not in `taken`, uniform over draws from the ranges of `settings`; its
    key is added."""
    for _ in range(ATTEMPTS):
        numbers = tuple(sorted(rng.randint(*settings.number_range) for _ in range(settings.numbers)))
        target = rng.randint(*settings.target_range)
        key = _key(settings, numbers, target)
        if key not in taken and solvable(numbers, target, settings.max_value):
            taken.add(key)
            return Problem(name, numbers, target)
    raise ParamsError(
        f"problems: no new solvable problem in {ATTEMPTS} draws after {len(taken)}; "
        "allowed: fewer problems, or wider number_range and target_range"
    )


def _key(settings: CountdownProblems, numbers: tuple[int, ...], target: int) -> int:
    """Sorted numbers and target as one integer."""
    key = target
    for number in numbers:
        key = key * (settings.number_range[1] + 1) + number
    return key
