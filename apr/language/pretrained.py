"""The thread language in the ids of a pretrained model's own tokenizer.

What the tokenizer can write stays as it writes it: a number is its tokens of " 37", a sign its token of " +".
Every other word is one new token, ``<|apr:spawn|>``, and so is a sign that it has no token for.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apr.core.errors import CheckpointError
from apr.language.vocabulary import BaseVocabulary, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUMERAL = re.compile(r"([Ġ▁]?)([0-9]{0,9})")
"""A token of a number: the blank before it, as byte-level or SentencePiece tokenizers write it; digits."""
TRIED = range(1000)
"""Numbers that a tokenizer must write so that they can be read back."""


def new_token(word: str) -> str:
    return f"<|apr:{word}|>"


def missing_words(tokenizer: "PreTrainedTokenizerBase", task: Sequence[str], messages: int) -> list[str]:
    """The words for which the tokenizer has no token yet."""
    vocabulary = tokenizer.get_vocab()
    return [
        word for word in words_of(task, messages)[2:]  # it has its own <pad>, and <unk> is whatever it is
        if new_token(word) not in vocabulary and _own_token(tokenizer, word) is None
    ]  # fmt: skip


class PretrainedVocabulary(BaseVocabulary):
    """`tokenizer` has a token for every word; `rows` is the number of rows of the model's embeddings.

    Raises `CheckpointError` if a word has no token, or numbers cannot be read back as they are written.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", task: Sequence[str], messages: int, rows: int):
        self.tokenizer = tokenizer
        vocabulary, ids = tokenizer.get_vocab(), {}
        for word in words_of(task, messages)[2:]:
            token = vocabulary.get(new_token(word), _own_token(tokenizer, word))
            if token is None:
                raise CheckpointError(f"{tokenizer.name_or_path}: not a tokenizer of the thread language "
                                      f"({new_token(word)} is missing)")  # fmt: skip
            ids[word] = token
        numerals = {token: found.groups() for text, token in vocabulary.items()
                    if (found := NUMERAL.fullmatch(text)) and text}  # fmt: skip
        heads = {token: digits for token, (blank, digits) in numerals.items() if blank}
        tails = {token: digits for token, (blank, digits) in numerals.items() if not blank}
        super().__init__(task, messages, ids, heads, tails, rows)
        self.new_ids = sorted(vocabulary[name] for word in ids if (name := new_token(word)) in vocabulary)
        """Tokens that the model has not seen in its pretraining."""
        self._prefix = next((text for text in (" ", "") if all(self._spell(text, n) for n in TRIED)), " ")
        self.spell(0)

    @property
    def settings(self) -> dict[str, Any]:
        return {"task": self.task, "messages": self.messages, "rows": self.size}

    def spell(self, value: int) -> list[int]:
        ids = self._spell(self._prefix, value)
        if ids is None:
            raise CheckpointError(f"{self.tokenizer.name_or_path}: the tokenizer writes {value} so that it "
                                  "cannot be read back")  # fmt: skip
        return ids

    def _spell(self, prefix: str, value: int) -> list[int] | None:
        ids = self.tokenizer.encode(f"{prefix}{value}", add_special_tokens=False)
        return ids if self.read_number(ids, 0) == (value, len(ids)) else None


def _own_token(tokenizer: "PreTrainedTokenizerBase", word: str) -> int | None:
    """The tokenizer's one token for a sign; other words get new ones, whatever it has for their text."""
    for text in (f" {word}", word) if len(word) == 1 and not word.isalnum() else ():
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return ids[0]
    return None
