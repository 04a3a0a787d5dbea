"""How long a rollout would take on some devices: its threads replayed through costs of steps.

A rollout is a tree of threads; a thread is a list of parts, each of which reads some tokens (a prompt,
joined messages), samples some, and perhaps spawns. Every device decodes its own threads in steps, as the
engine does; a child goes to the device with the fewest threads. What devices would say to each other costs
nothing here.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from apr.rollouts.rollout import Rollout


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

    def step(self, threads: int, context: float, read: int) -> float:
        """Of a step in which `threads` sample behind `context` tokens in all, and read `read` tokens beyond
        one each."""
        size = max(1, threads)
        seconds = _at(self.decode, size) + context * _at(self.context, size, beyond=False)
        return seconds + max(0.0, _at(self.prefill, read) - self.decode[1]) if read else seconds


def in_steps(token_cost: float) -> Costs:
    """Returns costs in steps of one thread, whatever machine there is: each token more of a step, that of a
    further thread or one that is read, costs so much."""
    line = {1: 1.0, 2: 1.0 + token_cost}
    return Costs(line, {1: 0.0}, {0: 1.0, 1: 1.0 + token_cost})


def worth(solved: Any, steps: Any, weight: float, window: int) -> Any:
    """Returns what rollouts are worth, numbers or arrays: 1 - `weight` * t / (t + `window`) where the problem
    is solved, else 0; t are the steps that they take, or their tokens one after another."""
    return solved * (1 - weight * steps / (steps + window))


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
    device: "_Device"
    parent: "_Running | None" = None
    length: int = 0
    read: int = 0
    """Tokens that it has still to read, and to sample."""
    left: int = 0
    spawned: list[int] = field(default_factory=list)
    waits: int = 0
    """Children that have not ended."""


class _Device:
    """A device that decodes `live` threads from `clock` on."""

    def __init__(self, costs: Costs):
        self.costs, self.clock, self.live = costs, 0.0, list[_Running]()

    @property
    def steps(self) -> int:
        """Until one of its threads ends, or its part does."""
        return min(thread.left for thread in self.live)

    def span(self, steps: int) -> float:
        """Seconds of so many steps with these threads, the first of which reads what they have to read."""
        if not steps:
            return 0.0
        size, context = len(self.live), sum(thread.length for thread in self.live)
        read = sum(max(0, thread.read - 1) for thread in self.live)
        # context grows by a token of each thread, so that of the other steps is on average what lies between
        others = (steps - 1) * self.costs.step(size, context + size * steps / 2, 0)
        return self.costs.step(size, context, read) + others

    def go_to(self, now: float) -> None:
        """Makes all steps that begin before `now`; or waits until then, without threads."""
        if not self.live:
            self.clock = max(self.clock, now)
        elif self.clock < now:
            self.go(bisect_left(range(self.steps), now - self.clock, key=self.span))

    def go(self, steps: int) -> None:
        self.clock += self.span(steps)
        for thread in self.live if steps else ():
            thread.read, thread.left, thread.length = 0, thread.left - steps, thread.length + steps


def replay(threads: Sequence[Sequence[Part]], costs: Costs, devices: int, roots: int = 1) -> float:
    """Returns the seconds from the first token that a root reads to the last that is sampled; the first
    threads are `roots`, which begin together."""
    machine = [_Device(costs) for _ in range(devices)]

    def go_on(thread: _Running, now: float) -> None:
        if thread.parts:
            thread.read, sampled, thread.spawned = thread.parts.pop(0)
            thread.left, thread.length = max(1, sampled), thread.length + thread.read
            thread.device.go_to(now)
            thread.device.live.append(thread)
        elif thread.parent is not None:
            thread.parent.waits -= 1
            if not thread.parent.waits:
                go_on(thread.parent, now)

    for root in range(roots):
        go_on(_Running(list(threads[root]), machine[root % devices]), 0.0)
    while busy := [device for device in machine if device.live]:
        device = min(busy, key=lambda each: each.clock + each.span(each.steps))
        device.go(device.steps)
        for thread in [thread for thread in device.live if not thread.left]:
            device.live.remove(thread)
            children = [list(threads[child]) for child in thread.spawned if threads[child]]
            thread.waits = len(children)
            for parts in children:
                home = min(machine, key=lambda each: len(each.live))
                go_on(_Running(parts, home, thread), device.clock)
            if not children:
                go_on(thread, device.clock)
    return max(device.clock for device in machine)
