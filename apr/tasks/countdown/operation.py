"""Arithmetic of the task: exact integer operations without negative results."""

from collections.abc import Iterator
from typing import NamedTuple


class Operation(NamedTuple):
    """One step of a solution: ``left op right = result``, op one of ``+ - * /``."""

    left: int
    op: str
    right: int
    result: int


def legal_operations(x: int, y: int, max_value: int | None) -> Iterator[Operation]:
    """The legal operations on a pair, larger number first, in the canonical order ``+ - * /``.

    Integers only, no negative results, exact division, results at most `max_value` (None: no bound).
    """
    high, low = max(x, y), min(x, y)
    bound = float("inf") if max_value is None else max_value
    if high + low <= bound:
        yield Operation(high, "+", low, high + low)
    if high - low <= bound:
        yield Operation(high, "-", low, high - low)
    if high * low <= bound:
        yield Operation(high, "*", low, high * low)
    if low > 0 and high % low == 0 and high // low <= bound:
        yield Operation(high, "/", low, high // low)
