"""Framing of prompts, spawn, join and end, on token ids: all of the language that is not the task's."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from apr.core.params import Unit
from apr.language.vocabulary import BaseVocabulary

FRAMING = ("<pad>", "<unk>", "<root>", "<child>", "go", "spawn", "run", "joined", "resume", "join",
           "answer", "end")  # fmt: skip
"""Words that cannot stand inside a message or a returned text; ``<unk>`` is any token that is no word."""


class Malformed(NamedTuple):
    """A text that breaks the grammar: a value, never raised. `position` is the index of the token."""

    position: int
    reason: str


class Condition(NamedTuple):
    """The budget asked for in a root's prompt (paper, section 3.4)."""

    kind: Unit
    amount: int


class ThreadSyntax:
    """A root is prompted ``<root> P go``, or ``<root> P tokens 64 go`` under a condition, and ends with
    ``answer R end``. Spawn is ``spawn H #2 M #1 M run``, where ``#n`` opens a message and says that n are
    left, this one included; every message begins with the head H, which may be empty and is said once. A
    child is prompted ``<child> H M go`` and ends with ``join R end``; its parent goes on from ``joined R
    joined R ... resume``."""

    def __init__(self, vocabulary: BaseVocabulary):
        ids = self._ids = vocabulary.ids
        self._number = vocabulary.number
        self._root, self._child = ids["<root>"], ids["<child>"]
        self._go, self._end = ids["go"], ids["end"]
        self._spawn, self.run = ids["spawn"], ids["run"]
        self._count_of = vocabulary.count_of
        self._join, self._joined, self._resume = ids["join"], ids["joined"], ids["resume"]
        self._word = vocabulary.word
        self.stop_ids = frozenset((self.run, self._end))
        self.nothing = [ids["none"]]
        """What a child that failed returns."""

    def prompt(self, problem: Sequence[int], condition: Condition | None) -> list[int]:
        """The root's prompt, up to and with `go`, of a problem in the task's words."""
        asked = [] if condition is None else [self._ids[condition.kind], *self._number(condition.amount)]
        return [self._root, *problem, *asked, self._go]

    def no_answer(self) -> list[int]:
        """The end of a root that declares no solution."""
        return [self._ids["answer"], *self.nothing, self._end]

    def sampled(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """For each token of demonstrations, one thread after another, whether a model would sample it: no
        prompt, no join."""
        tokens, places = np.asarray(ids), np.arange(len(ids))

        def last(*of: int) -> np.ndarray:
            """Where one of these tokens stands last, that place included; -1 before the first."""
            return np.maximum.accumulate(np.where(np.isin(tokens, of), places, -1))

        spans = ((self._root, self._child), self._go), ((self._joined,), self._resume)
        prompted, joined = (np.append(-1, last(end))[:-1] < last(*begin) for begin, end in spans)
        return ~(prompted | joined)

    def messages(self, ids: Sequence[int]) -> list[list[int]] | Malformed:
        """The messages, head included, of the spawn block that ends `ids` (whose last id is `run`)."""
        start = _last(ids, self._spawn)
        if start is None:
            return Malformed(len(ids) - 1, "run without spawn")
        head: list[int] = []
        messages: list[list[int]] = []
        left = 0
        for position in range(start + 1, len(ids) - 1):
            token = ids[position]
            if token in self._count_of:
                if messages and self._count_of[token] != left - 1:
                    return Malformed(position, f"{self._word(token)!r} after '#{left}'")
                left = self._count_of[token]
                messages.append([])
            elif self._word(token) in FRAMING:
                return Malformed(position, f"{self._word(token)!r} inside a spawn")
            else:
                (messages[-1] if messages else head).append(token)
        if not messages:
            return Malformed(len(ids) - 1, "spawn of nothing")
        if left != 1:
            return Malformed(len(ids) - 1, f"run after '#{left}'")
        if not all(messages):
            return Malformed(len(ids) - 1, "empty message")
        return [head + message for message in messages]

    def child_prompt(self, message: Sequence[int]) -> list[int]:
        return [self._child, *message, self._go]

    def returned(self, ids: Sequence[int]) -> list[int] | Malformed:
        """What a finished child returns: the tokens between its last `join` and the `end` that ends `ids`."""
        start = _last(ids, self._join)
        if start is None:
            return Malformed(len(ids) - 1, "child ends without join")
        returned = list(ids[start + 1 : -1])
        for offset, token in enumerate(returned):
            if self._word(token) in FRAMING:
                return Malformed(start + 1 + offset, f"{self._word(token)!r} inside a join")
        return returned or Malformed(len(ids) - 1, "empty join")

    def joined(self, returns: Sequence[Sequence[int]]) -> list[int]:
        """The tokens that are appended to the parent: each child's return in spawn order."""
        return [*(token for returned in returns for token in (self._joined, *returned)), self._resume]


def _last(ids: Sequence[int], token: int) -> int | None:
    for position in range(len(ids) - 1, -1, -1):
        if ids[position] == token:
            return position
    return None
