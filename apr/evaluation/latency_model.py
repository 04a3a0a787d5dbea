"""How long a rollout would take on 1 to 16 devices: its threads replayed through measured costs of steps.

A rollout is a tree of threads; a thread is a list of parts, each of which reads some tokens (a prompt,
joined messages), samples some, and perhaps spawns. Every device decodes its own threads in steps, as the
engine does; a child goes to the device with the fewest threads. What devices would say to each other costs
nothing here.
"""

import time
from collections.abc import Mapping, Sequence
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
REPEATS = 3


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
    sizes, seconds = np.array(list(table)), np.array(list(table.values()))
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


def replay(threads: Sequence[Sequence[Part]], costs: Costs, devices: int) -> float:
    """Seconds from the first token that the root reads to the last that is sampled."""
    clocks = [0.0] * devices
    # On each device, by thread: when it is ready, its part, tokens left to sample, tokens to read.
    placed: list[dict[int, list[Any]]] = [{} for _ in range(devices)]
    part_of, length = [0] * len(threads), [0] * len(threads)
    home = [0] * len(threads)
    left: dict[int, int] = {}
    parent: dict[int, int] = {}

    def start(thread: int, ready: float) -> None:
        part = threads[thread][part_of[thread]]
        length[thread] += part.read
        placed[home[thread]][thread] = [ready, part, part.sampled, part.read]

    def ended(thread: int, now: float) -> None:
        part_of[thread] += 1
        if part_of[thread] < len(threads[thread]):
            start(thread, now)
        elif thread in parent:
            above = parent[thread]
            left[above] -= 1
            if not left[above]:
                ended(above, now)

    start(0, 0.0)
    last = 0.0
    while any(placed):
        busy = [device for device in range(devices) if placed[device]]
        for device in busy:
            clocks[device] = max(clocks[device], min(work[0] for work in placed[device].values()))
        device = min(busy, key=lambda index: clocks[index])
        ready = {thread: work for thread, work in placed[device].items() if work[0] <= clocks[device]}
        read = sum(max(0, work[3] - 1) for work in ready.values())
        clocks[device] += costs.step(len(ready), sum(length[thread] for thread in ready), read)
        last = max(last, clocks[device])
        for thread, work in ready.items():
            work[2], work[3] = work[2] - 1, 0
            length[thread] += 1
            if work[2] > 0:
                continue
            del placed[device][thread]
            if work[1].spawned:
                left[thread] = len(work[1].spawned)
                for child in work[1].spawned:
                    parent[child] = thread
                    if threads[child]:
                        home[child] = min(range(devices), key=lambda index: len(placed[index]))
                        start(child, clocks[device])
                    else:
                        left[thread] -= 1
            else:
                ended(thread, clocks[device])
    return last


def measure_costs(decoder: Decoder, window: int, vocabulary_size: int, stop_ids: frozenset[int]) -> Costs:
    """Times greedy steps of a decoder that nothing else uses: medians, by batch, context and prompt."""
    words = [token for token in range(vocabulary_size) if token not in stop_ids]
    room = window - STEPS - 2

    def open_threads(count: int, length: int) -> None:
        for key in range(count):
            prompt = [words[(key + place) % len(words)] for place in range(length)]
            decoder.open(("costs", key), prompt, Sampling(0.0, key), window)

    def seconds_of_step() -> float:
        started = time.perf_counter()
        stopped = decoder.step()
        seconds = time.perf_counter() - started
        for key, _ in stopped:  # goes on behind its stop token
            decoder.extend(key, [], window)
        return seconds

    times: dict[tuple[int, int], list[float]] = {}
    prefill: dict[int, list[float]] = {}
    batches = [size for size in BATCHES if size <= decoder.capacity]
    contexts = [max(1, min(length, room)) for length in CONTEXTS]
    for _ in range(REPEATS):
        for count, length in product(batches, contexts):
            open_threads(count, length)
            seconds_of_step()
            times.setdefault((count, length), []).extend(seconds_of_step() for _ in range(STEPS))
            for key in range(count):
                decoder.close(("costs", key))
        for length in (size for size in PROMPTS if size < window):
            open_threads(1, length)
            prefill.setdefault(length, []).append(seconds_of_step())
            decoder.close(("costs", 0))
    short, long = contexts
    decode, context = {}, {}
    for count in batches:
        few, many = (float(np.median(times[count, length])) for length in contexts)
        context[count] = max(0.0, (many - few) / (count * (long - short))) if long > short else 0.0
        decode[count] = max(0.0, few - context[count] * count * (short + (STEPS + 1) / 2))
    return Costs(decode, context, {size: float(np.median(found)) for size, found in sorted(prefill.items())})
