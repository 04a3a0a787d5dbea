"""A multiplication problem, and its numbers digit by digit."""

import re
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa

from apr.core.errors import DataError, ParamsError, quoted
from apr.tasks.multiplication.settings import MOST_DIGITS, MultiplicationProblems

PROBLEM_SCHEMA = pa.schema([("problem_id", pa.string()), ("left", pa.int64()), ("right", pa.int64())])
TEXT = re.compile(r"\s*([0-9]{1,100})\s*[*x×]\s*([0-9]{1,100})\s*")
ATTEMPTS = 10_000
"""Draws at most for a new problem."""


class Problem(NamedTuple):
    id: str
    left: int
    right: int

    def __str__(self) -> str:
        return f"{self.left} × {self.right}"

    @property
    def size(self) -> int:
        """Digits of the longer number; both are written with so many, and what comes of them with twice."""
        return len(str(max(self.left, self.right)))


def digits_of(number: int, size: int) -> list[int]:
    """Returns so many digits of a number, the last one, which is worth least, first."""
    return [number // 10**place % 10 for place in range(size)]


def number_of(digits: Sequence[int]) -> int:
    return sum(digit * 10**place for place, digit in enumerate(digits))


def draw_problem(settings: MultiplicationProblems, name: str, rng: Random, taken: set[Any]) -> Problem:
    """A problem whose numbers are not in `taken`, in this order, to which they are added."""
    sizes = settings.test_digits if name.startswith("test") else None
    for _ in range(ATTEMPTS):
        size = rng.randint(*(sizes or settings.digits))
        least = 10 ** (size - 1) if size > 1 else 0
        left, right = (rng.randint(least, 10**size - 1) for _ in range(2))
        if (left, right) not in taken:
            taken.add((left, right))
            return Problem(name, left, right)
    raise ParamsError(f"problems: no new problem in {ATTEMPTS} draws after {len(taken)}; allowed: fewer "
                      "problems, or more digits")  # fmt: skip


def problem_of(name: str, left: Any, right: Any) -> Problem:
    """Returns a problem. Raises `DataError` if it is none."""
    if any(number is None or not 0 <= number < 10**MOST_DIGITS for number in (left, right)):
        raise DataError(f"is not a problem: {left} × {right}; allowed: numbers of 1 to {MOST_DIGITS} digits")
    return Problem(name, left, right)


def problem_of_text(text: str) -> Problem:
    """Returns the problem that "123 * 456" says. Raises `DataError`."""
    found = TEXT.fullmatch(text)
    if found is None:
        raise DataError(f"{quoted(text)}: not a problem; allowed: two numbers and a sign, as in '123 * 456'")
    return problem_of("problem", int(found[1]), int(found[2]))
