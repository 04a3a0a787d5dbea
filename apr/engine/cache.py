"""A dense KV cache with a row per slot, as a `Cache` of `transformers`, so that any model fills it."""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class SlotCache(Cache):
    """Room for `slots` threads of up to `window` tokens in each of `layers` layers.

    The forward pass after `select` has batch rows in slots `rows` (n,) and writes at `positions` (n, tokens),
    of which position `window` discards. Attention sees the first `length` positions. `prefix`: the rows are
    the first n slots, which saves a copy.
    """

    def __init__(self, layers: int, slots: int, window: int):
        self.slots, self.window = slots, window
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])

    def select(self, rows: torch.Tensor, positions: torch.Tensor, length: int, prefix: bool) -> None:
        self.rows, self.positions, self.length, self.prefix = rows, positions, length, prefix


class _SlotLayer(CacheLayerMixin):
    """Keys and values (slots, heads, window + 1, d); the last position takes what nobody reads."""

    is_sliding = False

    def __init__(self, cache: SlotCache):
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros, as a masked weight of 0 times an uninitialised NaN would be NaN.
        self.keys, self.values = (
            like.new_zeros(self._cache.slots, like.shape[1], self._cache.window + 1, like.shape[3])
            for like in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._put(self.keys, key_states), self._put(self.values, value_states)

    def _put(self, kept: Any, states: torch.Tensor) -> torch.Tensor:
        """Writes `states`, and returns what attention sees."""
        cache = self._cache
        kept[cache.rows[:, None], :, cache.positions] = states.transpose(1, 2)
        if cache.prefix:
            return kept[: len(cache.rows), :, : cache.length]
        return kept[:, :, : cache.length].index_select(0, cache.rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.length, 0

    def get_seq_length(self) -> int:
        return self._cache.length

    def get_max_length(self) -> int:
        return self._cache.window
