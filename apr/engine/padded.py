"""Any causal LM of `transformers` over a dense KV cache with a row per slot, by its own forward pass.

The cache is a `transformers` `Cache`, so that any model fills it. Before a pass, `SlotCache.select` says
which slots the rows of the batch are and where their new keys go. Rows are padded on the left.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

PREFILL_TOKENS = 16384
"""Largest padded size of one pass, in tokens."""
PREFILL_SLACK = 256
"""Padding that a pass may have, in tokens, before it is cut in two."""


class PaddedModel:
    """A `Forward` of any model, on any device."""

    ragged = False
    slack = PREFILL_SLACK

    def __init__(self, model: PreTrainedModel, slots: int, window: int):
        self._model, self._window = model, window
        self._cache = SlotCache(model.config.get_text_config().num_hidden_layers, slots, window)

    def __call__(self, slots: Array, begin: Array, end: Array, ids: Array) -> torch.Tensor:
        counts = end - begin
        order = np.argsort(-counts, kind="stable")
        longer = int(np.count_nonzero(counts > 1))
        parts = [order[start:stop] for start, stop in
                 length_spans(counts[order[:longer]].tolist(), self.slack, PREFILL_TOKENS)]  # fmt: skip
        parts += [order[longer:]] if longer < len(order) else []
        with sdpa(self._model):
            found = [self._pass(slots[part], begin[part], end[part], ids) for part in parts]
        return torch.cat(found)[self._tensor(np.argsort(order))]

    def _pass(self, slots: Array, begin: Array, end: Array, ids: Array) -> torch.Tensor:
        """Logits (n, vocabulary). If most of the first slots are fed one token each, all of them are, with
        one that nobody reads for the others: that saves a copy of the cache."""
        first = int(slots.max()) + 1
        prefix = bool((end - begin == 1).all()) and first <= 2 * len(slots)
        if prefix:
            ends = np.ones(first, np.int64)
            ends[slots] = end
            writes = np.full((first, 1), self._window)
            writes[slots, 0] = end - 1
            kept, slots, end = slots, np.arange(first), ends
            positions = end[:, None] - 1
        else:
            kept = np.arange(len(slots))
            positions = end[:, None] + np.arange(-(end - begin).max(), 0)
            writes = np.where(positions >= begin[:, None], positions, self._window)
            positions = np.maximum(positions, 0)
        logits = self._logits(
            self._tensor(ids[slots[:, None], positions]), self._tensor(positions), self._tensor(slots),
            self._tensor(writes), int(end.max()), prefix,
        )  # fmt: skip
        return logits[self._tensor(kept)]

    def _logits(
        self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, writes: torch.Tensor,
        reach: int, prefix: bool,
    ) -> torch.Tensor:  # fmt: skip
        """Logits (n, vocabulary) of the last of the tokens `ids` (n, tokens); see `SlotCache.select`."""
        hidden = torch.arange(reach, device=positions.device) > positions[:, None, :, None]
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=hidden.device)
        mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)
        self._cache.select(slots, writes, reach, prefix)
        return self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._model.device)


@contextmanager
def sdpa(model: PreTrainedModel) -> Iterator[None]:
    """Packed attention takes no cache; other implementations are left as they are."""
    kept = model.config._attn_implementation
    if kept == "packed":
        model.config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        model.config._attn_implementation = kept


@dataclass
class _Selection:
    """The slots and positions of one forward pass, shared by all layers."""

    window: int
    rows: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    length: int = 0
    prefix: bool = False

    def view(self, cache: torch.Tensor) -> torch.Tensor:
        if self.prefix:
            return cache[: len(self.rows), :, : self.length]
        return cache[:, :, : self.length].index_select(0, self.rows)


class _SlotLayer(CacheLayerMixin):
    """Keys and values (slots, heads, window + 1, d); the last position takes what nobody reads."""

    is_sliding = False

    def __init__(self, slots: int, selection: _Selection):
        super().__init__()
        self._slots, self._selection = slots, selection

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def empty(like: torch.Tensor) -> torch.Tensor:
            # Zeros, as a masked weight of 0 times an uninitialised NaN would be NaN.
            return like.new_zeros(self._slots, like.shape[1], self._selection.window + 1, like.shape[3])

        self.keys, self.values = empty(key_states), empty(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows, positions = self._selection.rows[:, None], self._selection.positions
        self.keys[rows, :, positions] = key_states.transpose(1, 2)
        self.values[rows, :, positions] = value_states.transpose(1, 2)
        return self._selection.view(self.keys), self._selection.view(self.values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._selection.length, 0

    def get_seq_length(self) -> int:
        return self._selection.length

    def get_max_length(self) -> int:
        return self._selection.window


class SlotCache(Cache):
    """Room for `slots` threads of up to `window` tokens in each of `layers` layers."""

    def __init__(self, layers: int, slots: int, window: int):
        self._selection = _Selection(window)
        super().__init__(layers=[_SlotLayer(slots, self._selection) for _ in range(layers)])

    def select(self, rows: torch.Tensor, positions: torch.Tensor, length: int, prefix: bool) -> None:
        """The next forward pass has batch rows in slots `rows` (n,) and writes at `positions` (n, tokens).

        Position `window` discards. Attention sees the first `length` positions. `prefix`: the rows are the
        first n slots, which saves a copy.
        """
        selection = self._selection
        selection.rows, selection.positions = rows, positions
        selection.length, selection.prefix = length, prefix


def length_spans(lengths: Sequence[int], slack: int, most: int) -> list[tuple[int, int]]:
    """Cuts rows of the given lengths into runs (start, stop), each with at most `slack` positions of padding,
    and at most `most` positions in all unless a single row has more."""
    spans = []
    start = longest = total = 0
    for row, length in enumerate(lengths):
        longest, total = max(longest, length), total + length
        size = (row + 1 - start) * longest
        if row > start and (size - total > slack or size > most):
            spans.append((start, row))
            start, longest, total = row, length, length
    return [*spans, (start, len(lengths))] if len(lengths) else spans
