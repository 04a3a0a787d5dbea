"""Words and their token ids: control words, depth markers, operators, and numbers."""

from collections.abc import Iterable, Sequence

CONTROL = (
    "<pad>", "<unk>", "<root>", "<child>", "go", "tokens", "children",
    "list", "goto", "spawn", "run", "joined", "resume", "join", "answer", "none", ",", "end",
)  # fmt: skip
OPERATORS = ("+", "-", "*", "/")
DIGITS = 100
"""Tokens that the digits of a number may take: what a model writes must not cost arithmetic without bound."""
COMPARISONS = ("<", "!", ">")
"""A leaf's result against the target: below, equal, above."""


class Vocabulary:
    """Words <-> ids. Numbers up to `number_tokens` are one token each; a larger one is its longest
    prefix that is a token, then a token for each further digit: ``256`` is ``25 ##6``.

    `depths` is the number of depth markers ``:0 :1 ...``, one for each count of operations done;
    `messages` that of the words ``#1 #2 ...``, which open a spawn's messages and count down to the last.
    """

    def __init__(self, number_tokens: int, depths: int, messages: int):
        self.number_tokens = number_tokens
        self.depths = depths
        self.messages = messages
        self.words: list[str] = [
            *CONTROL,
            *OPERATORS,
            "=",
            *COMPARISONS,
            *(f":{depth}" for depth in range(depths)),
            *(f"#{count}" for count in range(1, messages + 1)),
            *(f"##{digit}" for digit in range(10)),
            *(str(number) for number in range(max(number_tokens, 9) + 1)),
        ]
        self.ids: dict[str, int] = {word: index for index, word in enumerate(self.words)}
        self.size = len(self.words)
        self.pad = self.ids["<pad>"]
        self.depth_ids = [self.ids[f":{depth}"] for depth in range(depths)]
        self.count_of = {self.ids[f"#{count}"]: count for count in range(1, messages + 1)}
        self._numbers: dict[int, list[int]] = {}
        self.digit_of = {self.ids[f"##{digit}"]: digit for digit in range(10)}
        self.number_of = {self.ids[str(n)]: n for n in range(max(number_tokens, 9) + 1)}

    def number(self, value: int) -> list[int]:
        """The token ids of a natural number."""
        ids = self._numbers.get(value)
        if ids is None:
            text = str(value)
            cut = next(size for size in range(len(text), 0, -1) if text[:size] in self.ids)
            ids = [self.ids[text[:cut]], *(self.ids[f"##{digit}"] for digit in text[cut:])]
            if len(self._numbers) < 100_000:
                self._numbers[value] = ids
        return ids

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises `ValueError` on a word that the language does not have."""
        ids: list[int] = []
        for word in text.split():
            if word.isascii() and word.isdigit():
                ids.extend(self.number(int(word)))
            elif word in self.ids:
                ids.append(self.ids[word])
            else:
                raise ValueError(f"not a word of the thread language: {word!r}")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, a blank between words. Ids outside the vocabulary read ``<unk>``."""
        words = (self.words[i] if 0 <= i < self.size else "<unk>" for i in ids)
        return " ".join(words).replace(" ##", "")

    def read_number(self, ids: Sequence[int], position: int) -> tuple[int, int] | None:
        """The number that starts at `position` and the position after it; None if none starts there, or if
        it goes on for more than `DIGITS` tokens."""
        if position >= len(ids) or ids[position] not in self.number_of:
            return None
        first = position
        value = self.number_of[ids[position]]
        position += 1
        while position < len(ids) and ids[position] in self.digit_of:
            value = value * 10 + self.digit_of[ids[position]]
            position += 1
        return (value, position) if position - first <= DIGITS else None
