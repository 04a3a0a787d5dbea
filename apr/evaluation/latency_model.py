"""How long a rollout would take on 1 to 16 devices: its threads replayed through measured costs of steps.

A rollout is a tree of threads; a thread is a list of parts, each of which reads some tokens (a prompt,
joined messages), samples some, and perhaps spawns. Every device decodes its own threads in steps, as the
engine does; a child goes to the device with the fewest threads. What devices would say to each other costs
nothing here.
"""

import time
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from apr.engine.interface import Decoder, Sampling
from apr.rollouts.rollout import Rollout

DEVICES = (1, 2, 4, 8, 16)
BATCHES = (1, 2, 4, 8, 16, 32)
"""Threads of the decoding steps that are timed."""
CONTEXTS = (16, 160)
"""Tokens that each of them has at first; between the two lies what a token of context costs."""
PROMPTS = (8, 16, 32, 64, 128)
"""Tokens of the prompts that are timed."""
STEPS = 16
REPEATS = 5


class Part(NamedTuple):
    """`read` and `sampled` tokens; `spawned` are the indices of the threads that start after them."""

    read: int
    sampled: int
    spawned: list[int]


class Costs(NamedTuple):
    """Seconds of a step: by the threads that it decodes, were they without context; of each token of their
    context, by the threads too; and of a step of one thread, by the tokens of the prompt that it reads."""

    decode: Mapping[int, float]
    context: Mapping[int, float]
    prefill: Mapping[int, float]

    def step(self, threads: int, context: int, read: int) -> float:
        """Of a step in which `threads` sample behind `context` tokens in all, and read `read` tokens beyond
        one each."""
        size = max(1, threads)
        seconds = _at(self.decode, size) + context * _at(self.context, size, beyond=False)
        return seconds + max(0.0, _at(self.prefill, read) - self.decode[1]) if read else seconds


def _at(table: Mapping[int, float], size: int, beyond: bool = True) -> float:
    """Between the entries along a line, and so beyond the last, or like the last."""
    return _between(tuple(table.items()), size, beyond)


@lru_cache(maxsize=10_000)  # a replay asks for the same few sizes again and again
def _between(table: tuple[tuple[int, float], ...], size: int, beyond: bool) -> float:
    sizes, seconds = map(np.array, zip(*table, strict=True))
    if size <= sizes[-1] or len(sizes) == 1 or not beyond:
        return float(np.interp(size, sizes, seconds))
    slope = max(0.0, (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]))
    return float(seconds[-1] + slope * (size - sizes[-1]))


def parts_of(rollout: Rollout) -> list[list[Part]]:
    """The parts of each thread, in the rollout's order of threads."""
    found = []
    for thread in rollout.threads:
        parts, start = [], 0
        for at, spawned in [*((spawn.at, spawn.children) for spawn in thread.spawns), (len(thread.ids), [])]:
            sampled = sum(thread.sampled[start:at])
            if at > start:
                parts.append(Part(at - start - sampled, sampled, spawned))
            start = at
        found.append(parts)
    return found


@dataclass(eq=False)
class _Running:
    """A thread on its device, with the parts that are still to come."""

    parts: list[Part]
    device: int
    parent: "_Running | None" = None
    length: int = 0
    ready: float = 0.0
    """When the present part may begin."""
    read: int = 0
    """Tokens that it has still to read, and to sample."""
    left: int = 0
    spawned: list[int] = field(default_factory=list)
    waits: int = 0
    """Children that have not ended."""


def replay(threads: Sequence[Sequence[Part]], costs: Costs, devices: int, roots: int = 1) -> float:
    """Returns the seconds from the first token that a root reads to the last that is sampled; the first
    threads are `roots`, which begin together."""
    clocks, running = [0.0] * devices, list[_Running]()

    def go_on(thread: _Running, now: float) -> None:
        if thread.parts:
            thread.read, thread.left, thread.spawned = thread.parts.pop(0)
            thread.ready, thread.length = now, thread.length + thread.read
            running.append(thread)
        elif thread.parent is not None:
            thread.parent.waits -= 1
            if not thread.parent.waits:
                go_on(thread.parent, now)

    for root in range(roots):
        go_on(_Running(list(threads[root]), root % devices), 0.0)
    while running:
        busy = {thread.device for thread in running}
        for device in busy:
            ready = min(thread.ready for thread in running if thread.device == device)
            clocks[device] = max(clocks[device], ready)
        device = min(sorted(busy), key=clocks.__getitem__)
        step = [thread for thread in running if thread.device == device and thread.ready <= clocks[device]]
        read = sum(max(0, thread.read - 1) for thread in step)
        clocks[device] += costs.step(len(step), sum(thread.length for thread in step), read)
        for thread in step:
            thread.read, thread.left, thread.length = 0, thread.left - 1, thread.length + 1
            if thread.left > 0:
                continue
            running.remove(thread)
            children = [list(threads[child]) for child in thread.spawned if threads[child]]
            thread.waits = len(children)
            for parts in children:
                home = min(range(devices), key=[other.device for other in running].count)
                go_on(_Running(parts, home, thread), clocks[device])
            if not children:
                go_on(thread, clocks[device])
    return max(clocks)


def measure_costs(decoder: Decoder, window: int, vocabulary_size: int, stop_ids: frozenset[int]) -> Costs:
    """Times a decoder that nothing else uses, greedily: medians, by batch, context and prompt.

    A call of `Decoder.step` may make several of the steps that are meant here.
    """
    words = [token for token in range(vocabulary_size) if token not in stop_ids]
    room = window - STEPS - 2

    def decode_to(length: int, lengths: dict[Hashable, int]) -> float:
        """Seconds until all threads have that length; they go on behind stop tokens."""
        started = time.perf_counter()
        while decoder.busy:
            for key, segment in decoder.step():
                lengths[key] += len(segment.ids)
                if lengths[key] < length:
                    decoder.extend(key, [], length)
        return time.perf_counter() - started

    def steps(count: int, length: int) -> tuple[float, float]:
        """Seconds of the step that reads so many prompts, and of a step that only decodes."""
        lengths: dict[Any, int] = dict.fromkeys(range(count), length)
        for key in lengths:
            prompt = [words[(key + place) % len(words)] for place in range(length)]
            decoder.open(key, prompt, Sampling(0.0, key), length + 1)
        first = decode_to(length + 1, lengths)
        for key in lengths:
            decoder.extend(key, [], length + 1 + STEPS)
        more = decode_to(length + 1 + STEPS, lengths)
        for key in lengths:
            decoder.close(key)
        return first, more / STEPS

    times: dict[tuple[int, int], list[float]] = defaultdict(list)
    prefill: dict[int, list[float]] = defaultdict(list)
    batches = [size for size in BATCHES if size <= decoder.capacity]
    contexts = [max(1, min(length, room)) for length in CONTEXTS]
    for _ in range(REPEATS):
        for count, length in product(batches, contexts):
            times[count, length].append(steps(count, length)[1])
        for length in (size for size in PROMPTS if size <= room):
            prefill[length].append(steps(1, length)[0])
    short, long = contexts
    decode, context = {}, {}
    for count in batches:
        few, many = (float(np.median(times[count, length])) for length in contexts)
        context[count] = max(0.0, (many - few) / (count * (long - short))) if long > short else 0.0
        decode[count] = max(0.0, few - context[count] * count * (short + (STEPS + 1) / 2))
    return Costs(decode, context, {size: float(np.median(found)) for size, found in sorted(prefill.items())})
