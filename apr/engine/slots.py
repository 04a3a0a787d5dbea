"""Continuous batching over any Hugging Face causal LM.

A slot holds one thread's tokens and KV cache. What a thread has but its cache lacks (a prompt, joined tokens,
or just the token sampled last) is its pending part; every step feeds the pending parts of the live slots to
the model and samples a token for each.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain, islice
from operator import attrgetter
from typing import Protocol

import numpy as np
import torch
from numpy import ndarray as Array
from transformers import PreTrainedConfig, PreTrainedModel

from apr.engine.fused import FusedLlama
from apr.engine.interface import Sampling, Segment
from apr.engine.padded import PaddedModel
from apr.engine.sampling import sample, uniforms
from apr.engine.static import StaticModel


class Forward(Protocol):
    """A model with a KV cache of `slots` rows."""

    ragged: bool
    """Whether rows of different lengths share a pass at no cost."""

    def __call__(self, slots: Array, begin: Array, end: Array, ids: Array) -> torch.Tensor:
        """Logits (n, vocabulary) after feeding tokens `begin[i]` to `end[i]` of the thread in `slots[i]`.

        They are in `ids` (slots, window); what lies before them has been fed.
        """


@dataclass(slots=True, eq=False)
class _Sequence:
    """A thread; `ids` are its tokens while it has no slot (`slot` -1), after that they are in the table."""

    key: Hashable
    sampling: Sampling
    limit: int
    ids: list[int]
    handed: int
    """Length when it was last handed over to the engine: what follows is sampled."""
    rank: int = 0
    slot: int = -1


class SlotEngine:
    """A `Decoder` with `slots` threads in memory, each of at most `window` tokens.

    Threads beyond that wait, in order of rank and arrival. A stopped thread keeps its slot, so an extension
    prefills only what was appended; if others wait while stopped threads hold more than half of the slots,
    those stopped last lose theirs and are prefilled again when extended, so nothing ever waits for good: one
    slot is enough for any number of threads.

    `model` must be in evaluation mode. A Llama in float32 on the CPU is decoded by `FusedLlama`, any other by
    its own forward pass, on a GPU in fixed shapes. Changed weights need a new engine.
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
        self._model = model if device is None else model.to(device)  # type: ignore[arg-type]
        self.prefill_seconds = self.decode_seconds = 0.0
        """Wall-clock time of steps that read prompts or joined tokens, and of those that only decode."""
        self._forward: Forward = _kind(self._model)(self._model, slots, window)
        self._stop = np.zeros(config.vocab_size, bool)
        self._stop[list(stop_ids)] = True
        # The table: a row per slot. `cached` counts the tokens whose keys and values are in the cache.
        self._ids = np.zeros((slots, window), np.int64)
        self._logprobs = np.zeros((slots, window))
        self._length, self._cached, self._limit, self._key = (np.zeros(slots, np.int64) for _ in range(4))
        self._temperature = np.zeros(slots)
        self._live = np.zeros(slots, bool)
        self._owner = np.full(slots, None, object)
        self._sequences: dict[Hashable, _Sequence] = {}
        self._queue: dict[Hashable, _Sequence] = {}
        self._resumed: dict[Hashable, _Sequence] = {}
        self._stopped: dict[Hashable, _Sequence] = {}

    def open(
        self, key: Hashable, prompt: Sequence[int], sampling: Sampling, limit: int, rank: int = 0
    ) -> None:
        if key in self._sequences:
            raise ValueError(f"thread {key!r} is already open")
        if not 0 < len(prompt) < limit <= self.window:
            raise ValueError(f"prompt of {len(prompt)} tokens, limit {limit}: no room to sample")
        sequence = _Sequence(key, sampling, limit, list(prompt), len(prompt), rank)
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

    def shorten(self, key: Hashable, limit: int) -> None:
        sequence = self._sequences.get(key)
        if sequence is None or limit <= sequence.handed:
            raise ValueError(f"thread {key!r} is not open, or no room to sample is left")
        sequence.limit = min(sequence.limit, limit)
        if sequence.slot >= 0 and key not in self._stopped:
            self._limit[sequence.slot] = sequence.limit
            self._length[sequence.slot] = min(self._length[sequence.slot], sequence.limit)

    def close(self, key: Hashable) -> None:
        if key not in self._sequences:
            raise ValueError(f"thread {key!r} is not open")
        sequence = self._sequences.pop(key)
        for waiting in (self._queue, self._resumed, self._stopped):
            waiting.pop(key, None)
        if sequence.slot >= 0:
            self._owner[sequence.slot] = None
            self._live[sequence.slot] = False

    def peek(self, key: Hashable) -> list[int]:
        """What a thread has sampled since it was opened or extended, while it decodes; else nothing."""
        sequence = self._sequences[key]
        if sequence.slot < 0 or not self._live[sequence.slot]:
            return []
        return self._ids[sequence.slot, sequence.handed : self._length[sequence.slot]].tolist()

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._resumed or self._live.any())

    @torch.inference_mode()
    def step(self) -> list[tuple[Hashable, Segment]]:
        """Admits waiting threads, then samples a token for every live one."""
        if self._model.training:
            raise ValueError("the model is in training mode; call model.eval() before decoding")
        started = time.perf_counter()
        self._admit()
        slots = np.flatnonzero(self._live)
        cut = self._length[slots] >= self._limit[slots]
        stopped = [self._hand_over(slot) for slot in slots[cut].tolist()]
        slots = slots[~cut]
        if not len(slots):
            return stopped
        begin, end = self._cached[slots], self._length[slots]
        fed, noise = (slots, begin, end, self._ids), uniforms(self._key[slots], end)
        if isinstance(self._forward, StaticModel):
            tokens, logprobs = self._forward.sample(*fed, self._temperature[slots], noise)
        else:
            tokens, logprobs = sample(self._forward(*fed), self._temperature[slots], noise)
        stopped += self._record(slots, tokens, logprobs)
        seconds = time.perf_counter() - started
        if (end - begin > 1).any():
            self.prefill_seconds += seconds
        else:
            self.decode_seconds += seconds
        return stopped

    def _admit(self) -> None:
        """Gives slots to waiting threads.

        Where a pass over few threads costs nearly as much as one over some more, they wait until they are a
        sixteenth of the live ones.
        """
        live = int(np.count_nonzero(self._live))
        resident = [sequence for sequence in self._resumed.values() if sequence.slot >= 0]
        queue = [sequence for sequence in self._resumed.values() if sequence.slot < 0]
        queued = len(queue) + len(self._queue)
        if not resident and not queued:
            return
        free = self.capacity - int(np.count_nonzero(self._owner))
        idle = self.capacity - free - live - len(resident)
        evicted = max(0, min(queued - free, idle - self.capacity // 2))
        admitted = min(queued, free + evicted)
        if not self._forward.ragged and (len(resident) + admitted) * 16 < live:
            return
        self._evict(evicted)
        waiting = nsmallest(admitted, chain(queue, self._queue.values()), key=attrgetter("rank"))
        for sequence, slot in zip(waiting, np.flatnonzero(self._owner == None), strict=False):  # noqa: E711
            self._load(sequence, int(slot))
        for sequence in resident + waiting:
            self._live[sequence.slot] = True
            self._queue.pop(sequence.key, None)
            self._resumed.pop(sequence.key, None)

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


def _kind(model: PreTrainedModel) -> Callable[[PreTrainedModel, int, int], Forward]:
    if FusedLlama.supports(model):
        return FusedLlama
    return StaticModel if model.device.type == "cuda" else PaddedModel


def _check_window(config: PreTrainedConfig, window: int) -> None:
    """Raises `ValueError` where full attention over `window` tokens is not what the model does."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ValueError(f"layers of type {sorted(kinds)} have no KV cache by position")
    for name in ("max_position_embeddings", "sliding_window"):
        most = getattr(config, name, None)
        if most is not None and window > most:
            raise ValueError(f"window {window} is larger than the model's {name} {most}")
