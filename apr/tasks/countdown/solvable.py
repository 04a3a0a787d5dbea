"""Which targets can be reached: exhaustive, by parting the numbers instead of by sequences of operations."""

from functools import lru_cache
from itertools import combinations

from apr.tasks.countdown.operation import legal_operations


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


def solvable(numbers: tuple[int, ...], target: int, max_value: int | None) -> bool:
    """Whether `target` is in ``reachable(numbers, max_value)``; `numbers` ascend.

    From the target backwards: what one group of the numbers can be says what the other has to be.
    """
    if len(numbers) <= 2:
        return target in reachable(numbers, max_value)
    if max_value is not None and target > max_value:
        return False
    for few, many in _parts(len(numbers)):
        others = tuple([numbers[index] for index in many])
        for x in reachable(tuple([numbers[index] for index in few]), max_value):
            if x == target == 0 and reachable(others, max_value):
                return True
            wanted = _partners(x, target)
            if len(others) <= 2:
                if not reachable(others, max_value).isdisjoint(wanted):
                    return True
            elif any(solvable(others, y, max_value) for y in wanted):
                return True
    return False


def _partners(x: int, target: int) -> list[int]:
    """Each y of which a legal operation with `x` makes `target`; where both are 0 it may be any."""
    found = [x + target, abs(x - target)]
    if x > 0:
        found.append(x * target)
        if target % x == 0:
            found.append(target // x)
        if target > 0 and x % target == 0:
            found.append(x // target)
    return found


def _splits(numbers: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ways to part `numbers` into two non-empty groups."""
    return {
        (tuple(numbers[index] for index in few), tuple(numbers[index] for index in many))
        for few, many in _parts(len(numbers))
    }


@lru_cache
def _parts(count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ways to part `count` indices into two groups, the one of fewer first; halves start with index 0,
    and come first, as they are the quickest to look at."""
    parts = []
    for size in range(count // 2, 0, -1):
        for few in combinations(range(count), size):
            if 2 * size < count or few[0] == 0:
                parts.append((few, tuple(index for index in range(count) if index not in few)))
    return parts
