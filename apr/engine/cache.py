"""A dense KV cache with a row per slot, and decoding attention that reads each row only as far as needed.

The cache is a `transformers` `Cache`, so that any causal LM fills it through its ordinary forward pass.
Before a pass, `SlotCache.select` says which slots the rows of the batch are and where their new keys go.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward


class _Selection:
    """The slots and positions of one forward pass, shared by all layers."""

    def __init__(self, window: int):
        self.window = window
        self.rows: torch.Tensor | None = None
        self.count = self.length = 0
        self._positions = torch.empty(0)
        self._indices: dict[int, torch.Tensor] = {}

    def set(self, rows: torch.Tensor, positions: torch.Tensor, length: int, prefix: bool) -> None:
        self.rows, self._positions = rows, positions
        self.prefix, self.count, self.length = prefix, len(rows), length
        self._indices = {}

    def index(self, heads: int) -> torch.Tensor:
        """Flat targets of new keys (batch, heads, tokens) in a cache (slots, heads, window + 1)."""
        if heads not in self._indices:
            head = self.rows[:, None] * heads + torch.arange(heads, device=self.rows.device)
            self._indices[heads] = (head[:, :, None] * (self.window + 1) + self._positions[:, None]).flatten()
        return self._indices[heads]

    def view(self, cache: torch.Tensor) -> torch.Tensor:
        if self.prefix:
            return cache[: self.count, :, : self.length]
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
        index = self._selection.index(key_states.shape[1])
        for cache, new in ((self.keys, key_states), (self.values, value_states)):
            size = cache.shape[-1]
            cache.view(-1, size).index_copy_(0, index, new.reshape(-1, size))
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
        self._selection.set(rows, positions, length, prefix)

    def move(self, sources: torch.Tensor, targets: torch.Tensor, length: int) -> None:
        """Slot `targets[i]` takes the first `length` positions that slot `sources[i]` had."""
        for layer in self.layers:
            for cache in (layer.keys, layer.values) if layer.is_initialized else ():
                cache[targets, :, :length] = cache[sources, :, :length]


def length_spans(lengths: Sequence[int], slack: int, most: int | None = None) -> list[tuple[int, int, int]]:
    """Cuts rows of the given lengths into runs (start, stop, longest), each with at most `slack` positions
    of padding, and at most `most` positions in all unless a single row has more."""
    spans = []
    start = longest = total = 0
    for row, length in enumerate(lengths):
        longest, total = max(longest, length), total + length
        size = (row + 1 - start) * longest
        if row > start and (size - total > slack or (most is not None and size > most)):
            spans.append((start, row, max(lengths[start:row])))
            start, longest, total = row, length, length
    return [*spans, (start, len(lengths), longest)] if len(lengths) else spans


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one new token per row, span by span where the mask carries `spans`; else plain SDPA.

    Decoding is bound by memory: a span reads its own longest row of the cache, not the batch's.
    """
    spans = getattr(attention_mask, "spans", None)
    if spans is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    rows, heads, _, size = query.shape
    groups = key.shape[1]
    query = query.reshape(rows, groups, heads // groups, size) * (size**-0.5 if scaling is None else scaling)
    output = query.new_empty(rows, groups, heads // groups, value.shape[-1])
    for start, stop, length in spans:
        scores = torch.matmul(query[start:stop], key[start:stop, :, :length].transpose(2, 3))
        weights = scores.add_(attention_mask[start:stop, :, :, :length]).softmax(-1)
        torch.matmul(weights, value[start:stop, :, :length], out=output[start:stop])
    return output.view(rows, 1, heads, -1), None


AttentionInterface.register("slots", slot_attention)


def arrange(rows: np.ndarray, lengths: np.ndarray, group: int) -> np.ndarray:
    """New slots for the threads in slots `rows` (n,): the first n, from long to short in steps of `group`.

    A thread whose slot already lies in the right group of slots stays where it is.
    """
    order = np.argsort(-lengths, kind="stable")
    places = np.arange(len(rows))
    stays = (rows[order] // group == places // group) & (rows[order] < len(rows))
    targets = np.where(stays, rows[order], -1)
    targets[~stays] = np.setdiff1d(places, targets[stays], assume_unique=True)
    result = np.empty_like(rows)
    result[order] = targets
    return result
