"""Words and their token ids: control words, the task's words, and numbers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CONTROL = (
    "<pad>", "<unk>", "<root>", "<child>", "go", "tokens", "children",
    "list", "goto", "spawn", "run", "joined", "resume", "join", "answer", "none", ",", "end",
)  # fmt: skip
"""Words that every task may say; a search says `list` and `goto`."""
DIGITS = 100
"""Tokens that the digits of a number may take: what a model writes must not cost arithmetic without bound."""


def words_of(task: Sequence[str], messages: int) -> list[str]:
    """Every word but the numbers."""
    return [*CONTROL, *task, *(f"#{count}" for count in range(1, messages + 1))]


class BaseVocabulary(ABC):
    """Words <-> token ids, whichever tokenizer the ids are of.

    A word is one token (`ids`). A number is one of `heads` and then any of `tails`, tokens that stand for
    digits; a head may stand for none, if it only says that a number begins. `size` is the number of rows of a
    model's embeddings; ids that are no word and no part of a number read ``<unk>``.

    `task` has the task's words; `messages` is the number of words ``#1 #2 ...``, which open a spawn's
    messages and count down to the last.
    """

    def __init__(
        self, task: Sequence[str], messages: int, ids: Mapping[str, int], heads: Mapping[int, str],
        tails: Mapping[int, str], size: int,
    ):  # fmt: skip
        self.task, self.messages, self.ids, self.size = list(task), messages, ids, size
        self.count_of = {ids[f"#{count}"]: count for count in range(1, messages + 1)}
        self.number_of = {token: int(digits) for token, digits in heads.items() if digits}
        self._heads, self._tails = heads, tails
        self._words = {token: word for word, token in ids.items()} | dict(heads)
        self._words |= {token: f"##{digits}" for token, digits in tails.items()}
        self._numbers: dict[int, list[int]] = {}

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the vocabulary is built from, beside a tokenizer: its arguments."""

    @abstractmethod
    def spell(self, value: int) -> list[int]:
        """`number`, worked out."""

    def number(self, value: int) -> list[int]:
        """The token ids of a natural number."""
        ids = self._numbers.get(value)
        if ids is None:
            ids = self.spell(value)
            if len(self._numbers) < 100_000:
                self._numbers[value] = ids
        return ids

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; commas need no blanks. Raises `ValueError` on a word that is none of them."""
        ids: list[int] = []
        for word in text.replace(",", " , ").split():
            if word.isascii() and word.isdigit():
                ids.extend(self.number(int(word)))
            elif word in self.ids:
                ids.append(self.ids[word])
            else:
                raise ValueError(f"not a word of the thread language: {word!r}")
        return ids

    def word(self, token: int) -> str:
        return self._words.get(token, "<unk>")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, a blank between words."""
        return " ".join(map(self.word, ids)).replace(" ##", "")

    def read_number(self, ids: Sequence[int], position: int) -> tuple[int, int] | None:
        """The number that starts at `position` and the position after it; None if none starts there, or if
        it goes on for more than `DIGITS` tokens."""
        if position >= len(ids) or (digits := self._heads.get(ids[position])) is None:
            return None
        first = position
        position += 1
        while position < len(ids) and (more := self._tails.get(ids[position])) is not None:
            digits += more
            position += 1
        return (int(digits), position) if digits and position - first <= DIGITS else None


class Vocabulary(BaseVocabulary):
    """The words of this project's own tokenizer, in their order. Numbers up to `number_tokens` are one token
    each; a larger one is its longest prefix that is a token, then a token for each further digit: ``256`` is
    ``25 ##6``."""

    def __init__(self, number_tokens: int, task: Sequence[str], messages: int):
        self.number_tokens = number_tokens
        tails = {f"##{digit}": str(digit) for digit in range(10)}
        heads = [str(number) for number in range(max(number_tokens, 9) + 1)]
        self.words = [*words_of(task, messages), *tails, *heads]
        ids = {word: index for index, word in enumerate(self.words)}
        super().__init__(
            task, messages, ids, heads={ids[word]: word for word in heads},
            tails={ids[word]: digit for word, digit in tails.items()}, size=len(ids),
        )  # fmt: skip
        self.pad = ids["<pad>"]

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("number_tokens", "task", "messages")}

    def spell(self, value: int) -> list[int]:
        text = str(value)
        cut = next(size for size in range(len(text), 0, -1) if text[:size] in self.ids)
        return [self.ids[text[:cut]], *(self.ids[f"##{digit}"] for digit in text[cut:])]
