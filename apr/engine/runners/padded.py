"""Any causal LM of `transformers` over a dense KV cache with a row per slot, by its own forward pass.

Prompts and joined tokens are read in passes of rows padded on the left; a pass over one token of each thread
reads and writes the same memory every time, and looks at no value on its way.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy import ndarray as Array
from transformers import PreTrainedModel

from apr.engine.cache import SlotCache
from apr.engine.sampling import draw, finite, sample
from apr.engine.scheduler import Batch, Table

PREFILL_TOKENS = 16384
"""Largest padded size of one pass, in tokens."""
PREFILL_SLACK = 256
"""Padding that a pass may have, in tokens, before it is cut in two."""


class PaddedModel:
    """A `Runner` of any model, on any device."""

    ragged = False
    any_slots = False
    """Whether a step reads the cache of any slots without a copy."""
    slack = PREFILL_SLACK

    def __init__(self, model: PreTrainedModel, slots: int, window: int):
        self._model, self._window = model, window
        self._cache = SlotCache(model.config.get_text_config().num_hidden_layers, slots, window)
        self._host = torch.zeros(6, slots, dtype=torch.int64, pin_memory=model.device.type == "cuda")
        self._given = self._host.to(model.device)
        """For each row: token, position, slot, where its keys go, and the bits of temperature and noise."""
        self._drawn = torch.zeros(2, slots, dtype=torch.int64, device=model.device)
        """For each row: the token, and the bits of its log-probability."""

    def reload(self, model: PreTrainedModel) -> None:
        self._model = model

    def advance(self, table: Table, slots: Array, workers: int) -> float:
        """A token each; torch has threads of its own, whatever `workers`."""
        batch = table.batch(slots)
        table.append(slots, *self.sample(batch))
        return float((batch.end - batch.begin > 1).any())

    def sample(self, batch: Batch) -> tuple[Array, Array]:
        """Feeds the tokens of `batch`, and draws the next of each thread, as `apr.engine.sampling.sample`."""
        tokens, logprobs = np.empty(len(batch.slots), np.int64), np.empty(len(batch.slots))
        one = batch.end - batch.begin == 1
        with sdpa(self._model):
            for rows, way in (~one, self._read), (one, self._decode):
                if rows.any():
                    tokens[rows], logprobs[rows] = way(batch.part(rows))
        return tokens, finite(logprobs)

    def _read(self, batch: Batch) -> tuple[Array, Array]:
        counts = batch.end - batch.begin
        order = np.argsort(-counts, kind="stable")
        spans = length_spans(counts[order].tolist(), self.slack, PREFILL_TOKENS)
        logits = torch.cat([self._pass(batch.part(order[start:stop])) for start, stop in spans])
        return sample(logits[self._tensor(np.argsort(order))], batch.temperatures, batch.noise)

    def _pass(self, batch: Batch) -> torch.Tensor:
        """Logits (n, vocabulary)."""
        begin, end = batch.begin[:, None], batch.end[:, None]
        positions = end + np.arange(-(end - begin).max(), 0)
        writes = np.where(positions >= begin, positions, self._window)
        positions = np.maximum(positions, 0)
        fed = batch.ids[batch.slots[:, None], positions], positions, batch.slots, writes
        ids, at, slots, to = map(self._tensor, fed)
        return self._logits(ids, at, slots, to, int(end.max()), False)

    def _decode(self, batch: Batch) -> tuple[Array, Array]:
        """If most of the first slots are fed, all of them are, with a token that nobody reads for the others:
        that saves a copy of the cache."""
        last, count = batch.end - 1, len(batch.slots)
        first, rows = self._rows(int(batch.slots.max()) + 1), self._rows(count)
        prefix = not self.any_slots and first <= 2 * rows
        rows, places = (first, batch.slots) if prefix else (rows, np.arange(count))
        given = self._host.numpy()
        # Rows that nobody reads keep the rest of an earlier step, and write where nobody reads.
        given[2:4, :rows] = np.arange(rows), np.full(rows, self._window)
        bits = (array.view(np.int64) for array in (batch.temperatures, batch.noise))
        given[:, places] = batch.ids[batch.slots, last], last, batch.slots, last, *bits
        self._given.copy_(self._host, non_blocking=True)
        self._run(rows, self._reach(int(batch.end.max())), prefix)
        tokens, logprobs = self._drawn.cpu().numpy()[:, places]
        return tokens, logprobs.view(np.float64)

    def _rows(self, count: int) -> int:
        """Rows of a pass over so many."""
        return count

    def _reach(self, end: int) -> int:
        """Positions that attention sees where it needs so many."""
        return end

    def _run(self, rows: int, reach: int, prefix: bool) -> None:
        """From `given` to `drawn`: whatever is not in them is the same each time."""
        given, drawn = self._given[:, :rows], self._drawn[:, :rows]
        ids, positions, slots, writes = given[:4]
        logits = self._logits(ids[:, None], positions[:, None], slots, writes[:, None], reach, prefix)
        tokens, logprobs = draw(logits, *given[4:].view(torch.float64))
        drawn[0].copy_(tokens)
        drawn[1].copy_(logprobs.view(torch.int64))

    def _logits(self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, writes: torch.Tensor,
                reach: int, prefix: bool) -> torch.Tensor:  # fmt: skip
        """Logits (n, vocabulary) of the last of the tokens `ids` (n, tokens); see `SlotCache`."""
        hidden = torch.arange(reach, device=positions.device) > positions[:, None, :, None]
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=hidden.device)
        mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)
        self._cache.select(slots, writes, reach, prefix)
        return self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self._cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip

    def _tensor(self, array: Array) -> torch.Tensor:
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
