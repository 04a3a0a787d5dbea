"""Continuous batching over any Hugging Face causal LM.

A slot holds one thread's tokens and KV cache. The slots in use come first and are ordered by length, roughly,
so that a decoding step is one forward pass over a prefix of the cache. What a thread has but its cache lacks
(a prompt, joined tokens, or just the token sampled last) is its pending part; every forward pass feeds the
pending parts of some slots and samples a token for each.
"""

import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from apr.engine.cache import SlotCache, arrange, length_spans
from apr.engine.interface import Sampling, Segment
from apr.engine.sampling import sample, uniforms

PREFILL_TOKENS = 16384
"""Largest padded size of one prefill, in tokens."""
PREFILL_SLACK = 256
"""Padding that a prefill may have, in tokens, before it is cut in two."""
SPAN_SLACK = 512
"""Padding that a span of decoding attention may have, in tokens, before it is cut in two."""
GROUPS = 4
"""Steps of the ordering by length: finer ones save padding and cost moves."""
WASTE = 1.5
"""Slots are put in order when attention reads this many times the positions it needs."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """A thread; `ids` are its tokens while it has no slot (`slot` -1), after that they are in the table."""

    key: Hashable
    sampling: Sampling
    limit: int
    ids: list[int]
    handed: int
    """Length when it was last handed over to the engine: what follows is sampled."""
    slot: int = -1


class SlotEngine:
    """A `Decoder` with `slots` threads in memory, each of at most `window` tokens.

    Threads beyond that wait in order of arrival. A stopped thread keeps its slot, so an extension prefills
    only what was appended; if others wait while stopped threads hold more than half of the slots, those
    stopped last lose theirs and are prefilled again when extended, so nothing ever waits for good.

    `model` must be in evaluation mode. Its attention is switched from "sdpa" or "packed" to the engine's own
    during a step; other implementations are left as they are. Changed weights need a new engine.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: Iterable[int],
        slots: int,
        window: int,
        device: torch.device | str | None = None,
    ):
        config = model.config.get_text_config()
        _check_window(config, window)
        self.capacity, self.window = slots, window
        self._model = model if device is None else model.to(device)
        self._device = self._model.device
        self.prefill_seconds = self.decode_seconds = 0.0
        """Wall-clock time of reading prompts and joined tokens, and of decoding."""
        self._cache = SlotCache(config.num_hidden_layers, slots, window)
        self._stop = np.zeros(config.vocab_size, bool)
        self._stop[list(stop_ids)] = True
        # The table: a row per slot. `cached` counts the tokens whose keys and values are in the cache.
        self._ids = np.zeros((slots, window), np.int64)
        self._logprobs = np.zeros((slots, window))
        self._length, self._cached, self._limit, self._key = (np.zeros(slots, np.int64) for _ in range(4))
        self._temperature = np.zeros(slots)
        self._live = np.zeros(slots, bool)
        self._owner = np.full(slots, None, object)
        self._prefix = 0
        """Slots of a decoding step, the first ones; those of them that are not live are holes."""
        self._sequences: dict[Hashable, _Sequence] = {}
        self._queue: dict[Hashable, _Sequence] = {}
        self._resumed: dict[Hashable, _Sequence] = {}
        self._stopped: dict[Hashable, _Sequence] = {}

    def open(self, key: Hashable, prompt: Sequence[int], sampling: Sampling, limit: int) -> None:
        if key in self._sequences:
            raise ValueError(f"thread {key!r} is already open")
        if not 0 < len(prompt) < limit <= self.window:
            raise ValueError(f"prompt of {len(prompt)} tokens, limit {limit}: no room to sample")
        sequence = _Sequence(key, sampling, limit, list(prompt), len(prompt))
        self._sequences[key] = self._queue[key] = sequence

    def extend(self, key: Hashable, ids: Sequence[int], limit: int) -> None:
        sequence = self._stopped.get(key)
        if sequence is None:
            raise ValueError(f"thread {key!r} is not open and stopped")
        slot = sequence.slot
        length = int(self._length[slot]) if slot >= 0 else len(sequence.ids)
        if not length + len(ids) < limit <= self.window:
            raise ValueError(f"{length} + {len(ids)} tokens, limit {limit}: no room to sample")
        if slot >= 0:
            self._ids[slot, length : length + len(ids)] = ids
            self._length[slot] = length + len(ids)
            self._limit[slot] = limit
        else:
            sequence.ids.extend(ids)
        sequence.limit, sequence.handed = limit, length + len(ids)
        self._resumed[key] = self._stopped.pop(key)

    def close(self, key: Hashable) -> None:
        if key not in self._sequences:
            raise ValueError(f"thread {key!r} is not open")
        sequence = self._sequences.pop(key)
        for waiting in (self._queue, self._resumed, self._stopped):
            waiting.pop(key, None)
        if sequence.slot >= 0:
            self._owner[sequence.slot] = None
            self._live[sequence.slot] = False

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._resumed or self._live.any())

    @torch.inference_mode()
    def step(self) -> list[tuple[Hashable, Segment]]:
        """Admits waiting threads if it is worth a pass of its own, then samples a token for every slot."""
        if self._model.training:
            raise ValueError("the model is in training mode; call model.eval() before decoding")
        started = time.perf_counter()
        with _slot_attention(self._model):
            stopped = self._admit()
            admitted = time.perf_counter()
            if self._live.any():
                stopped += self._advance(np.arange(self._prefix), prefix=True)
        self.prefill_seconds += admitted - started
        self.decode_seconds += time.perf_counter() - admitted
        return stopped

    def _admit(self) -> list[tuple[Hashable, Segment]]:
        """Gives slots to waiting threads, puts the slots in order and prefills, if enough has changed.

        A pass over few threads costs nearly as much as one over some more, so they wait until they are a
        sixteenth of the live ones; holes wait until they are an eighth of the prefix.
        """
        live = int(np.count_nonzero(self._live))
        resident = [sequence for sequence in self._resumed.values() if sequence.slot >= 0]
        queue = [sequence for sequence in self._resumed.values() if sequence.slot < 0]
        queued = len(queue) + len(self._queue)
        free = self.capacity - int(np.count_nonzero(self._owner))
        idle = self.capacity - free - live - len(resident)
        evicted = max(0, min(queued - free, idle - self.capacity // 2))
        admitted = min(queued, free + evicted)
        entering = len(resident) + admitted
        if (not entering or entering * 16 < live) and (self._prefix - live) * 8 <= self._prefix:
            return []
        self._evict(evicted)
        waiting = list(islice(chain(queue, self._queue.values()), admitted))
        for sequence, slot in zip(waiting, np.flatnonzero(self._owner == None), strict=False):  # noqa: E711
            self._load(sequence, int(slot))
        for sequence in (members := resident + waiting):
            self._live[sequence.slot] = True
            self._queue.pop(sequence.key, None)
            self._resumed.pop(sequence.key, None)
        self._order()
        return self._prefill(np.array([sequence.slot for sequence in members], np.int64))

    def _evict(self, count: int) -> None:
        """Takes the slots of the `count` threads that stopped last: their children are last in the queue."""
        resident = (sequence for sequence in reversed(self._stopped.values()) if sequence.slot >= 0)
        for sequence in islice(resident, count):
            slot, sequence.slot = sequence.slot, -1
            sequence.ids = self._ids[slot, : self._length[slot]].tolist()
            self._owner[slot] = None

    def _load(self, sequence: _Sequence, slot: int) -> None:
        self._owner[slot], sequence.slot = sequence, slot
        self._ids[slot, : len(sequence.ids)] = sequence.ids
        self._length[slot], self._cached[slot] = len(sequence.ids), 0
        self._limit[slot] = sequence.limit
        self._temperature[slot], self._key[slot] = sequence.sampling

    def _order(self) -> None:
        """Moves the live threads to the first slots; by length, if attention would read much padding."""
        slots = np.flatnonzero(self._live)
        lengths = self._length[slots]
        spans = length_spans(lengths.tolist(), SPAN_SLACK)
        cost = sum((stop - start) * longest + SPAN_SLACK for start, stop, longest in spans)
        self._prefix = len(slots)
        groups = GROUPS if cost > WASTE * lengths.sum() else 1
        targets = arrange(slots, lengths, group=max(1, -(-len(slots) // groups)))
        sources = np.arange(self.capacity)
        sources[targets] = slots
        sources[np.setdiff1d(slots, targets)] = np.setdiff1d(targets, slots)
        changed = np.flatnonzero(sources != np.arange(self.capacity))
        if len(changed):
            self._move(sources[changed], changed)

    def _move(self, sources: np.ndarray, targets: np.ndarray) -> None:
        for table in (self._ids, self._logprobs, self._length, self._cached, self._limit, self._key,
                      self._temperature, self._live, self._owner):  # fmt: skip
            table[targets] = table[sources]
        owned = np.array([self._owner[slot] is not None for slot in targets])
        for slot in targets[owned].tolist():
            self._owner[slot].slot = slot
        cached = self._cached[targets] * owned
        filled = cached > 0
        if filled.any():
            self._cache.move(self._tensor(sources[filled]), self._tensor(targets[filled]), int(cached.max()))

    def _prefill(self, slots: np.ndarray) -> list[tuple[Hashable, Segment]]:
        pending = self._length[slots] - self._cached[slots]
        order = np.argsort(-pending, kind="stable")
        spans = length_spans(pending[order].tolist(), PREFILL_SLACK, PREFILL_TOKENS)
        return [
            stopped
            for start, stop, _ in spans
            for stopped in self._advance(slots[order[start:stop]], prefix=False)
        ]

    def _advance(self, slots: np.ndarray, prefix: bool) -> list[tuple[Hashable, Segment]]:
        """Feeds the pending tokens of `slots`, padded on the left, and samples one token for each.

        A slot that is not live takes part as one token that nobody reads.
        """
        live = self._live[slots]
        length = np.where(live, self._length[slots], 1)
        pending = np.where(live, length - self._cached[slots], 0)
        positions = length[:, None] + np.arange(-pending.max(), 0)
        writes = np.where(positions >= (length - pending)[:, None], positions, self.window)
        logits = self._forward(slots, np.maximum(positions, 0), writes, length, prefix)
        tokens, logprobs = sample(logits, self._temperature[slots], uniforms(self._key[slots], length))
        return self._record(slots[live], tokens[live], logprobs[live])

    def _forward(
        self, slots: np.ndarray, positions: np.ndarray, writes: np.ndarray, length: np.ndarray, prefix: bool
    ) -> torch.Tensor:
        """Logits (n, vocabulary) after the last of `positions` (n, tokens), whose keys go to `writes`."""
        reach = int(length.max())
        position_ids = self._tensor(positions)
        hidden = torch.arange(reach, device=self._device) > position_ids[:, None, :, None]
        dtype = self._model.dtype
        mask = torch.zeros(hidden.shape, dtype=dtype, device=self._device)
        mask.masked_fill_(hidden, torch.finfo(dtype).min)
        if prefix and self._device.type == "cpu":
            mask.spans = length_spans(length.tolist(), SPAN_SLACK)
        self._cache.select(self._tensor(slots), self._tensor(writes), reach, prefix)
        return self._model(
            input_ids=self._tensor(self._ids[slots[:, None], positions]),
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def _record(
        self, slots: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray
    ) -> list[tuple[Hashable, Segment]]:
        length = self._length[slots]
        self._ids[slots, length] = tokens
        self._logprobs[slots, length] = logprobs
        self._cached[slots] = length
        self._length[slots] = length + 1
        ended = self._stop[tokens] | (length + 1 >= self._limit[slots])
        return [self._hand_over(slot) for slot in slots[ended].tolist()]

    def _hand_over(self, slot: int) -> tuple[Hashable, Segment]:
        sequence, end = self._owner[slot], self._length[slot]
        self._live[slot] = False
        self._stopped[sequence.key] = sequence
        ids = self._ids[slot, sequence.handed : end].tolist()
        logprobs = self._logprobs[slot, sequence.handed : end].tolist()
        return sequence.key, Segment(ids, logprobs, "stop" if self._stop[ids[-1]] else "length")

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


@contextmanager
def _slot_attention(model: PreTrainedModel) -> Iterator[None]:
    kept = model.config._attn_implementation
    if kept in ("sdpa", "packed"):
        model.config._attn_implementation = "slots"
    try:
        yield
    finally:
        model.config._attn_implementation = kept


def _check_window(config: PreTrainedConfig, window: int) -> None:
    """Raises `ValueError` where full attention over `window` tokens is not what the model does."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ValueError(f"layers of type {sorted(kinds)} have no KV cache by position")
    for name in ("max_position_embeddings", "sliding_window"):
        most = getattr(config, name, None)
        if most is not None and window > most:
            raise ValueError(f"window {window} is larger than the model's {name} {most}")
