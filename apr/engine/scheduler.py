"""Which thread has which slot, and how far it is: continuous batching in numpy, without a model.

A slot holds one thread's tokens. What a thread has but its cache lacks (a prompt, joined tokens, or just the
token sampled last) is its pending part; a step feeds the pending parts of the live slots to the model and
samples a token for each.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from apr.engine.interface import Sampling, Segment

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(keys: Array, positions: Array) -> Array:
    """A float64 in [0, 1) for each pair (key, position), both (n,), by splitmix64 as a counter hash."""
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64) + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


class Batch(NamedTuple):
    """A step of n threads: tokens `begin[i]` to `end[i]` of row `slots[i]` of `ids` (slots, window) are fed,
    those before them have been; a token is drawn at `temperatures[i]` by the uniform `noise[i]`."""

    ids: Array
    slots: Array
    begin: Array
    end: Array
    temperatures: Array
    noise: Array

    def part(self, rows: Array) -> "Batch":
        """Of some of the threads."""
        return Batch(self.ids, *(array[rows] for array in self[1:]))


@dataclass(frozen=True)
class Table:
    """What is decoded, a row per slot; `native.c` reads and writes the same arrays.

    `ids` and their `logprobs` are (slots, window); `stop` (vocabulary) says of each token whether it ends a
    thread; of the others, each (slots,), `length` counts a thread's tokens, `cached` those of them whose keys
    and values are in the cache, always less, and at `limit` it ends.
    """

    ids: Array
    logprobs: Array
    length: Array
    cached: Array
    limit: Array
    temperature: Array
    key: Array
    stop: Array

    @classmethod
    def empty(cls, slots: int, window: int, vocabulary_size: int, stop_ids: Sequence[int]) -> "Table":
        length, cached, limit, key = (np.zeros(slots, np.int64) for _ in range(4))
        stop = np.zeros(vocabulary_size, bool)
        stop[list(stop_ids)] = True
        ids, logprobs = np.zeros((slots, window), np.int64), np.zeros((slots, window))
        return cls(ids, logprobs, length, cached, limit, np.zeros(slots), key, stop)

    def batch(self, slots: Array) -> Batch:
        """The next step of the threads in `slots` (n,)."""
        end = self.length[slots]
        noise = uniforms(self.key[slots], end)
        return Batch(self.ids, slots, self.cached[slots], end, self.temperature[slots], noise)

    def append(self, slots: Array, tokens: Array, logprobs: Array) -> None:
        """What a step has drawn for them."""
        length = self.length[slots]
        self.ids[slots, length] = tokens
        self.logprobs[slots, length] = logprobs
        self.cached[slots] = length
        self.length[slots] = length + 1

    def ended(self, slots: Array) -> Array:
        """Whether each of them ends with the token sampled last."""
        length = self.length[slots]
        return self.stop[self.ids[slots, length - 1]] | (length >= self.limit[slots])


@dataclass(slots=True, eq=False)
class _Sequence:
    """A thread; `ids` are its tokens while it has no slot (`slot` -1), after that they are in the table."""

    key: Hashable
    sampling: Sampling
    limit: int
    ids: list[int]
    handed: int
    """Length when it was last handed over to the engine: what follows is sampled."""
    order: tuple[int, bool]
    """Its rank; within a rank, those come first that have had a slot before."""
    slot: int = -1


class Scheduler:
    """The half of `SlotEngine` that holds no tensors; see there.

    `patient`: a pass over few threads costs nearly as much as one over some more, so threads wait until they
    are a sixteenth of the live ones.
    """

    def __init__(self, stop_ids: Iterable[int], vocabulary_size: int, slots: int, window: int, patient: bool):
        self.capacity, self.window, self.vocabulary_size = slots, window, vocabulary_size
        self.stop_ids = sorted(stop_ids)
        self._patient = patient
        self.table = Table.empty(slots, window, vocabulary_size, self.stop_ids)
        self._live = np.zeros(slots, bool)
        self._owner = np.full(slots, None, object)
        self._sequences: dict[Hashable, _Sequence] = {}
        self._waiting: dict[Hashable, _Sequence] = {}
        self._stopped: dict[Hashable, _Sequence] = {}

    def open(self, key: Hashable, prompt: Sequence[int], sampling: Sampling, limit: int,
             rank: int = 0) -> None:  # fmt: skip
        if key in self._sequences:
            raise ValueError(f"thread {key!r} is already open")
        if not 0 < len(prompt) < limit <= self.window:
            raise ValueError(f"prompt of {len(prompt)} tokens, limit {limit}: no room to sample")
        sequence = _Sequence(key, sampling, limit, list(prompt), len(prompt), (rank, True))
        self._sequences[key] = self._waiting[key] = sequence

    def extend(self, key: Hashable, ids: Sequence[int], limit: int) -> None:
        sequence = self._stopped.get(key)
        if sequence is None:
            raise ValueError(f"thread {key!r} is not open and stopped")
        slot = sequence.slot
        length = int(self.table.length[slot]) if slot >= 0 else len(sequence.ids)
        end = length + len(ids)
        if not end < limit <= self.window:
            raise ValueError(f"{length} + {len(ids)} tokens, limit {limit}: no room to sample")
        if slot >= 0:
            self.table.ids[slot, length:end] = ids
            self.table.length[slot], self.table.limit[slot] = end, limit
        else:
            sequence.ids.extend(ids)
        sequence.limit, sequence.handed, sequence.order = limit, end, (sequence.order[0], False)
        self._waiting[key] = self._stopped.pop(key)

    def shorten(self, key: Hashable, limit: int) -> None:
        sequence = self._sequences.get(key)
        if sequence is None or limit <= sequence.handed:
            raise ValueError(f"thread {key!r} is not open, or no room to sample is left")
        sequence.limit = min(sequence.limit, limit)
        if sequence.slot >= 0 and key not in self._stopped:
            table, slot = self.table, sequence.slot
            table.limit[slot] = sequence.limit
            table.length[slot] = min(table.length[slot], sequence.limit)
            table.cached[slot] = min(table.cached[slot], table.length[slot] - 1)

    def close(self, key: Hashable) -> None:
        if key not in self._sequences:
            raise ValueError(f"thread {key!r} is not open")
        sequence = self._sequences.pop(key)
        self._waiting.pop(key, None)
        self._stopped.pop(key, None)
        if sequence.slot >= 0:
            self._owner[sequence.slot] = None
            self._live[sequence.slot] = False

    def peek(self, key: Hashable) -> list[int]:
        """What a thread has sampled since it was opened or extended, while it decodes; else nothing."""
        sequence = self._sequences[key]
        if sequence.slot < 0 or not self._live[sequence.slot]:
            return []
        return self.table.ids[sequence.slot, sequence.handed : self.table.length[sequence.slot]].tolist()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._live.any())

    def schedule(self) -> tuple[Array, list[tuple[Hashable, Segment]]]:
        """Admits waiting threads. Returns the slots of the live ones, and those that were cut to an end."""
        if self._waiting:
            self._admit()
        slots = np.flatnonzero(self._live)
        cut = self.table.length[slots] >= self.table.limit[slots]
        return slots[~cut], [self._hand_over(slot) for slot in slots[cut].tolist()]

    def record(self, slots: Array) -> list[tuple[Hashable, Segment]]:
        """Returns those of the threads in `slots` that have ended with the token sampled last."""
        return [self._hand_over(slot) for slot in slots[self.table.ended(slots)].tolist()]

    def _admit(self) -> None:
        """Gives slots to waiting threads."""
        live = int(np.count_nonzero(self._live))
        resident = [sequence for sequence in self._waiting.values() if sequence.slot >= 0]
        queue = [sequence for sequence in self._waiting.values() if sequence.slot < 0]
        free = self.capacity - int(np.count_nonzero(self._owner))
        idle = self.capacity - free - live - len(resident)
        evicted = max(0, min(len(queue) - free, idle - self.capacity // 2))
        admitted = min(len(queue), free + evicted)
        if self._patient and (len(resident) + admitted) * 16 < live:
            return
        self._evict(evicted)
        first = nsmallest(admitted, queue, key=lambda sequence: sequence.order)
        for sequence, slot in zip(first, np.flatnonzero(self._owner == None), strict=False):  # noqa: E711
            self._load(sequence, int(slot))
        for sequence in resident + first:
            self._live[sequence.slot] = True
            del self._waiting[sequence.key]

    def _evict(self, count: int) -> None:
        """Takes the slots of the `count` threads that stopped last: their children are last in the queue."""
        resident = (sequence for sequence in reversed(self._stopped.values()) if sequence.slot >= 0)
        for sequence in islice(resident, count):
            slot, sequence.slot = sequence.slot, -1
            sequence.ids = self.table.ids[slot, : self.table.length[slot]].tolist()
            self._owner[slot] = None

    def _load(self, sequence: _Sequence, slot: int) -> None:
        self._owner[slot], sequence.slot = sequence, slot
        self.table.ids[slot, : len(sequence.ids)] = sequence.ids
        self.table.length[slot], self.table.cached[slot] = len(sequence.ids), 0
        self.table.limit[slot] = sequence.limit
        self.table.temperature[slot], self.table.key[slot] = sequence.sampling

    def _hand_over(self, slot: int) -> tuple[Hashable, Segment]:
        sequence, part = self._owner[slot], slice(self._owner[slot].handed, self.table.length[slot])
        self._live[slot] = False
        self._stopped[sequence.key] = sequence
        ids, logprobs = (array[slot, part].tolist() for array in (self.table.ids, self.table.logprobs))
        return sequence.key, Segment(ids, logprobs, "stop" if self.table.stop[ids[-1]] else "length")
