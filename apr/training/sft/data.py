"""Traces -> packed rows: which threads are seen, in what order, in which row, and which labels count."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from apr.core.errors import DataError
from apr.core.files import read_table
from apr.core.seeds import derive_seed

COLUMNS = pa.schema({
    "trace_id": pa.string(),
    "thread": pa.int32(),
    "role": pa.string(),
    "token_ids": pa.list_(pa.int32()),
    "loss_mask": pa.list_(pa.bool_()),
    "solved": pa.bool_(),
})
OPEN_ROWS = 16
"""Rows filled at the same time: enough to leave about 1 % of `row_tokens` empty."""


class Threads(NamedTuple):
    """The threads that are trained on: thread i is ``tokens[starts[i]:starts[i + 1]]``."""

    tokens: np.ndarray
    """int64"""
    loss: np.ndarray
    """bool: would the model itself sample this token?"""
    starts: np.ndarray
    """int64, one more than there are threads"""


def read_threads(
    path: Path, *, child_share: float, seed: int, longest: int, vocabulary_size: int
) -> Threads:
    """All roots, the children that solved, and a `child_share` of the other children, in the file's order.

    Which children are kept depends on seed, trace id and thread number only. Raises `DataError` if the file
    is not a traces file, if a thread has more than `longest` tokens or an id outside the vocabulary, or if
    it holds no thread.
    """
    table = read_table(path, COLUMNS)
    lengths = pc.list_value_length(table["token_ids"]).to_numpy()
    masked = pc.list_value_length(table["loss_mask"]).to_numpy()
    for row in np.flatnonzero((lengths > longest) | (lengths != masked))[:1]:
        raise DataError(
            f"{path}: row {row} (trace {table['trace_id'][row]}, thread {table['thread'][row]}) has "
            f"{lengths[row]} tokens, {masked[row]} of them with a loss mask; allowed: all of them, and at "
            f"most {longest}"
        )
    kept = pc.fill_null(pc.or_(pc.equal(table["role"], "root"), table["solved"]), False).to_numpy()
    others = np.flatnonzero(~kept)
    names = (table[name].take(pa.array(others)).to_pylist() for name in ("trace_id", "thread"))
    kept[others] = [derive_seed(seed, "sft", *name) < child_share * 2**63
                    for name in zip(*names, strict=True)]  # fmt: skip
    table = table.filter(pa.array(kept))
    tokens = pc.list_flatten(table["token_ids"]).to_numpy().astype(np.int64)
    if not len(tokens):
        raise DataError(f"{path}: no threads to train on")
    if tokens.min() < 0 or tokens.max() >= vocabulary_size:
        raise DataError(f"{path}: token ids outside the tokenizer's 0..{vocabulary_size - 1}")
    loss = pc.list_flatten(table["loss_mask"]).to_numpy()
    return Threads(tokens, loss, np.concatenate([[0], np.cumsum(lengths[kept])]))


def pack_rows(lengths: Sequence[int], row_tokens: int, tokens: int, seed: int) -> list[list[int]]:
    """Rows of thread indices, each of at most `row_tokens` tokens, until the rows hold `tokens` tokens.

    Threads come in a random order, anew in each epoch, and go into the first of a few open rows that has
    room; where none has, the fullest is closed.
    """
    closed: list[list[int]] = []
    rows: list[list[int]] = []
    room: list[int] = []
    for thread in _endless_order(len(lengths), seed):
        length = int(lengths[thread])
        place = next((i for i, left in enumerate(room) if left >= length), None)
        if place is None:
            if len(rows) == OPEN_ROWS or sum(row_tokens - left for left in room) >= tokens:
                fullest = room.index(min(room))
                tokens -= row_tokens - room.pop(fullest)
                closed.append(rows.pop(fullest))
                if tokens <= 0:
                    return closed
            place = len(rows)
            rows.append([])
            room.append(row_tokens)
        rows[place].append(thread)
        room[place] -= length
    raise AssertionError("the order is endless")


def _endless_order(count: int, seed: int) -> Iterator[int]:
    epoch = 0
    while True:
        yield from np.random.default_rng(derive_seed(seed, "sft order", epoch)).permutation(count).tolist()
        epoch += 1


class RowCollator:
    """Builds the batch of one row, ``{"threads": [indices]}``: tensors of shape (1, T).

    `shift_labels[0, t]` is the token after position t of the same thread, -100 where the model would not
    sample it.
    """

    def __init__(self, threads: Threads):
        self.threads = threads

    def __call__(self, features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        (feature,) = features
        tokens, loss, starts = self.threads
        spans = [slice(starts[i], starts[i + 1]) for i in feature["threads"]]
        ids = np.concatenate([tokens[span] for span in spans])
        sampled = np.concatenate([loss[span] for span in spans])
        positions = np.concatenate([np.arange(span.stop - span.start) for span in spans])
        labels = np.full_like(ids, -100)
        predicts = np.flatnonzero(sampled[1:] & (positions[1:] > 0))
        labels[predicts] = ids[predicts + 1]
        return {
            "input_ids": torch.from_numpy(ids)[None],
            "position_ids": torch.from_numpy(positions)[None],
            "shift_labels": torch.from_numpy(labels)[None],
        }
