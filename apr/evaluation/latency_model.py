"""What steps of a decoder cost here: `apr.rollouts.replay` replays rollouts through it."""

import time
from collections import defaultdict
from collections.abc import Hashable
from itertools import product
from typing import Any

import numpy as np

from apr.engine.interface import Decoder, Sampling
from apr.rollouts.replay import Costs

BATCHES = (1, 2, 4, 8, 16, 32)
"""Threads of the decoding steps that are timed."""
CONTEXTS = (16, 160)
"""Tokens that each of them has at first; between the two lies what a token of context costs."""
PROMPTS = (8, 16, 32, 64, 128)
"""Tokens of the prompts that are timed."""
STEPS = 16
REPEATS = 5


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
