"""Expansion of a state: its distinct successors, the best of them by a heuristic."""

from collections.abc import Callable
from functools import lru_cache

from apr.language.operation import Operation, legal_operations

State = tuple[int, ...]
Heuristic = Callable[[State, int], int]
"""Of a state of two numbers or more, and the target."""


@lru_cache(maxsize=1 << 16)
def factor_distance(number: int, target: int) -> int:
    """The least ``|number - f|`` over the factors f >= 2 of the target (the target itself included)."""
    factors = {f for d in range(1, int(target**0.5) + 1) if target % d == 0 for f in (d, target // d)}
    return min((abs(number - f) for f in factors if f >= 2), default=abs(number - target))


def multiply_heuristic(state: State, target: int) -> int:
    """How far all numbers are from factors of the target (the paper's)."""
    return sum(factor_distance(number, target) for number in state)


def result_heuristic(state: State, target: int) -> int:
    """How far the newest number is from a factor of the target: `multiply`, less what is not new."""
    return factor_distance(state[-1], target)


HEURISTICS: dict[str, Heuristic] = {"multiply": multiply_heuristic, "result": result_heuristic}
"""By their names in `TraceMethod.heuristic`; lower is more promising."""


def expand(
    state: State, target: int, beam: int, max_value: int | None, heuristic: Heuristic
) -> list[tuple[Operation, State]]:
    """The `beam` best successors of `state` in canonical order (pairs by position, then ``+ - * /``).

    A successor is the numbers that the operation leaves, in their order, then its result. Of
    successors equal as multisets the first is kept: canonical order and merged states are what makes
    the next token predictable.
    """
    found: dict[State, tuple[Operation, State]] = {}
    for i in range(len(state)):
        for j in range(i + 1, len(state)):
            rest = state[:i] + state[i + 1 : j] + state[j + 1 :]
            for operation in legal_operations(state[i], state[j], max_value):
                successor = (*rest, operation.result)
                found.setdefault(tuple(sorted(successor)), (operation, successor))
    successors = list(found.values())
    if len(successors) <= beam:
        return successors
    ranked = sorted(range(len(successors)), key=lambda i: (heuristic(successors[i][1], target), i))
    return [successors[i] for i in sorted(ranked[:beam])]
