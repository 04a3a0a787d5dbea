"""What can be said of multiplication's problems and solvers."""

from typing import Annotated

from pydantic import Field

from apr.core.params import Problems, TraceMethod
from apr.core.settings import Natural, Range, Share, only

MOST_DIGITS = 9
"""So that a product fits 64 bits."""
Digits = Annotated[Range, only(lambda ends: ends[0] > 0 and ends[1] <= MOST_DIGITS, "1 to 9")]


class MultiplicationProblems(Problems):
    """Two numbers of equally many digits to be multiplied."""

    digits: Digits = (2, 4)
    """Of each number; problems of each size are as likely."""
    test_digits: Digits | None = None
    """Of those of test problems, if they are others: more than were trained on."""

    def __str__(self) -> str:
        low, high = self.digits
        return f"two numbers of {low} to {high} digits"


class Solver(TraceMethod):
    """Long multiplication: a partial product for each digit of the second number, then their sum."""

    children: Annotated[Natural, Field(le=MOST_DIGITS)] = 0
    """Partial products are left to children where there are at most so many; 0 is a serial solver."""
    promising: Share = 0.9
    """How often they are, unless a number of children is asked for."""

    @property
    def spawns(self) -> int:
        return self.children
