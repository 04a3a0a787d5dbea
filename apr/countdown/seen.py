"""A set of whole numbers that takes 10 bytes for each, where Python's takes some 70."""

from array import array


class Seen:
    """Holds up to `most` numbers from 0 on, in an open hash table that is four fifths full at most.

    Of numbers beyond 2^61 it holds `hash`, so one that is new may, once in a long while, pass for held.
    """

    def __init__(self, most: int):
        self._table = array("Q", bytes(8 * (most + most // 4 + 1)))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        return self._table[self._place(number)] != 0

    def add(self, number: int) -> None:
        place = self._place(number)
        self._count += self._table[place] == 0
        self._table[place] = hash(number) + 1  # 0 is a free place

    def _place(self, number: int) -> int:
        """Where `number` is, or would be put."""
        held, table, size = hash(number) + 1, self._table, len(self._table)
        place = (held * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) * size >> 64  # 2^64 over the golden ratio
        while table[place] not in (0, held):
            place = place + 1 if place + 1 < size else 0
        return place
