"""Which targets can be reached: exhaustive, by parting the numbers instead of by sequences of operations."""

from functools import lru_cache
from itertools import combinations

from apr.countdown.operation import legal_operations


@lru_cache(maxsize=1 << 16)
def reachable(numbers: tuple[int, ...], max_value: int | None) -> frozenset[int]:
    """Every value that an expression over all of `numbers` (ascending) can have, each used once."""
    if len(numbers) == 1:
        return frozenset(numbers)
    values: set[int] = set()
    for chosen, rest in _splits(numbers):
        for x in reachable(chosen, max_value):
            for y in reachable(rest, max_value):
                values.update(operation.result for operation in legal_operations(x, y, max_value))
    return frozenset(values)


def _splits(numbers: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ways to part `numbers` into two non-empty groups; the first number stays in the first."""
    indices = range(1, len(numbers))
    parts = set()
    for size in range(len(numbers) - 1):
        for others in combinations(indices, size):
            chosen = tuple(numbers[i] for i in (0, *others))
            parts.add((chosen, tuple(numbers[i] for i in indices if i not in others)))
    return parts
