"""The words of Countdown (docs/thread-language.md), and answers read back from token ids.

`:1 9 / 3 = 3 5 12` is a state after one operation: that, and the numbers it leaves. Under a state of two
numbers stand their results against the target, `+ 27 !`. States after `list` are queued, not searched; after
`goto`, and the lines down to a state, the search goes on there. `answer 9 / 3 = 3 , 5 * 3 = 15 end` ends it.
"""

from collections.abc import Sequence
from typing import NoReturn

from apr.core.errors import DataError, quoted
from apr.language import Malformed
from apr.language.vocabulary import BaseVocabulary
from apr.tasks.countdown.operation import Operation

OPERATORS = ("+", "-", "*", "/")
COMPARISONS = ("<", "!", ">")
"""A result against the target: below, equal, above."""


def words_of(numbers: int) -> list[str]:
    """Returns the words of problems of so many numbers."""
    return [*OPERATORS, "=", *COMPARISONS, *(f":{depth}" for depth in range(numbers))]


def require_depths(vocabulary: BaseVocabulary, numbers: Sequence[int]) -> None:
    """Raises `DataError` if a problem has more numbers than there are depth markers."""
    if f":{len(numbers) - 1}" not in vocabulary.ids:
        most = sum(word.startswith(":") for word in vocabulary.task)
        raise DataError(f"{len(numbers)} numbers, {quoted(numbers)}, in a problem; allowed: at most {most}, "
                        "as the language has depths")  # fmt: skip


def read_answer(vocabulary: BaseVocabulary, ids: Sequence[int]) -> list[Operation] | None | Malformed:
    """Returns the operations that a finished root answers; None if it declares no solution. Only its last
    `answer` counts."""
    word = vocabulary.ids["answer"]
    start = next((place for place in range(len(ids) - 1, -1, -1) if ids[place] == word), None)
    if start is None:
        return Malformed(len(ids), "no answer")
    try:
        return _Reader(vocabulary, ids, start + 1).operations()
    except _Fault as fault:
        return fault.malformed


def read_return(vocabulary: BaseVocabulary, ids: Sequence[int]) -> list[Operation] | None | Malformed:
    """Returns the operations that a child returns; None if it returns that there is no solution."""
    try:
        return _Reader(vocabulary, [*ids, vocabulary.ids["end"]], 0).operations()
    except _Fault as fault:
        return fault.malformed


def read_child(
    vocabulary: BaseVocabulary, prompt: Sequence[int]
) -> tuple[int, list[tuple[Operation, list[int]]]] | Malformed:
    """Returns what a child is prompted with: the target, and each operation with the numbers after it."""
    try:
        return _Reader(vocabulary, prompt, 1).child()
    except _Fault as fault:
        return fault.malformed


class _Fault(Exception):
    """Unwinds the reader; never leaves this module."""

    def __init__(self, position: int, reason: str):
        self.malformed = Malformed(position, reason)


class _Reader:
    def __init__(self, vocabulary: BaseVocabulary, ids: Sequence[int], position: int):
        self.vocabulary, self.ids, self.position = vocabulary, ids, position

    def operations(self) -> list[Operation] | None:
        """Operations, or `none`, to the end of the ids."""
        found = None if self._word() == "none" else [self._operation()]
        self.position += found is None
        while found and self._word() == ",":
            self.position += 1
            found.append(self._operation())
        self._take("end")
        if self.position != len(self.ids):
            self._fail("text after the end")
        return found

    def child(self) -> tuple[int, list[tuple[Operation, list[int]]]]:
        """A target, then states one operation after another, to the `go` that ends the ids."""
        target, lines = self._number(), list[tuple[Operation, list[int]]]()
        while not lines or self._word() != "go":
            self._take(f":{len(lines) + 1}")
            operation, numbers = self._operation(), list[int]()
            while self._word() != "go" and not self._word().startswith(":"):
                numbers.append(self._number())
            lines.append((operation, [*numbers, operation.result]))
        return target, lines

    def _operation(self) -> Operation:
        left, op, right = self._number(), self._take(*OPERATORS), self._number()
        self._take("=")
        return Operation(left, op, right, self._number())

    def _number(self) -> int:
        found = self.vocabulary.read_number(self.ids, self.position)
        if found is None:
            self._fail(f"expected a number, found {self._word()!r}")
        number, self.position = found
        return number

    def _take(self, *allowed: str) -> str:
        word = self._word()
        if word not in allowed:
            expected = repr(allowed[0]) if len(allowed) == 1 else f"one of {' '.join(allowed)}"
            self._fail(f"expected {expected}, found {word!r}")
        self.position += 1
        return word

    def _word(self) -> str:
        return self.vocabulary.word(self.ids[self.position]) if self.position < len(self.ids) else "nothing"

    def _fail(self, reason: str) -> NoReturn:
        raise _Fault(self.position, reason)
