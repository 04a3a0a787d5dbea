"""Records of decoded thread trees and of what they used (sections 3.1 and 4.1)."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from apr.core.params import Join


class Status(StrEnum):
    """How a thread stands. What the model did wrong is MALFORMED or TRUNCATED, never an exception."""

    RUNNING = "running"
    WAITING = "waiting"
    """Has spawned and waits for its children."""
    DONE = "done"
    MALFORMED = "malformed"
    """Broke the rules of spawn or join."""
    TRUNCATED = "truncated"
    """Out of window or of tokens."""
    CANCELLED = "cancelled"
    """Spawned when no token was left to sample, so never started; or outrun by a sibling."""


class Limits(NamedTuple):
    """Budgets of decoding.

    `window`: tokens of one thread, prompt included. `max_tokens`: sampled tokens of one rollout; a thread
    that spawns shares what is left evenly among its children, and has what they leave for itself
    afterwards. `max_children`: of one spawn. `max_depth`: 0 forbids spawning, 1 lets only the root spawn.
    """

    window: int
    max_tokens: int
    max_children: int
    max_depth: int


class Request(NamedTuple):
    """A rollout to decode; `seed`, `id` and a thread's place in the tree fix the noise of its sampling.

    `join`: a parent, the root or another, goes on when all its children have ended, or when any of them has
    returned something. As all threads that can decode do so at the same time, its siblings and all below them
    have then come as far as it has, whatever the decoder has really done first; they are cut there and return
    nothing.
    """

    id: str
    prompt: list[int]
    temperature: float
    seed: int
    join: Join = "all"


@dataclass
class Spawn:
    """`at`: tokens of the parent up to and with `run`; `children`: indices of the threads it made."""

    at: int
    children: list[int]


@dataclass
class Thread:
    """One sequence. `sampled` and `logprobs` (nats, 0 where not sampled) have an entry for each of `ids`."""

    index: int
    parent: int
    """Index of the thread that spawned this one; -1 for the root."""
    depth: int
    prompt_length: int
    ids: list[int]
    sampled: list[bool]
    logprobs: list[float]
    status: Status = Status.RUNNING
    reason: str = ""
    """Why the thread is neither running nor done."""
    spawns: list[Spawn] = field(default_factory=list)


class Usage(NamedTuple):
    """Token ledger of a rollout."""

    prompt: int
    """Tokens of all prompts."""
    sampled: int
    injected: int
    """Tokens joined into parents."""
    sequential: int
    """Sampled tokens on the longest chain of dependent decoding: a parent up to a spawn, the longest child,
    the parent after it (Figure 6)."""
    longest: int
    """Tokens of the longest thread, prompt and injected ones included (Figure 4b)."""
    children: int
    depth: int

    @property
    def total(self) -> int:
        """Tokens decoded over all threads (Figures 4a and 5): `sampled`."""
        return self.sampled


@dataclass
class Rollout:
    """A thread tree. Thread 0 is the root; the others follow level by level, in order of parent and spawn."""

    id: str
    threads: list[Thread]

    @property
    def usage(self) -> Usage:
        prompt = sum(thread.prompt_length for thread in self.threads)
        sampled = sum(sum(thread.sampled) for thread in self.threads)
        return Usage(
            prompt, sampled, sum(len(thread.ids) for thread in self.threads) - prompt - sampled,
            sequential=self._sequential(0),
            longest=max(len(thread.ids) for thread in self.threads),
            children=len(self.threads) - 1,
            depth=max(thread.depth for thread in self.threads),
        )

    def without(self, child: int) -> "Rollout":
        """Returns the rollout less a child and all below it; what its parent wrote and read of it stays."""
        gone = {child}
        gone.update(thread.index for thread in self.threads if thread.parent in gone)
        kept = [thread for thread in self.threads if thread.index not in gone]
        place = {thread.index: number for number, thread in enumerate(kept)} | {-1: -1}

        def spawns(thread: Thread) -> list[Spawn]:
            left = [(spawn.at, [place[each] for each in spawn.children if each in place])
                    for spawn in thread.spawns]  # fmt: skip
            return [Spawn(at, children) for at, children in left if children]

        return Rollout(self.id, [
            replace(thread, index=place[thread.index], parent=place[thread.parent], spawns=spawns(thread))
            for thread in kept
        ])  # fmt: skip

    def _sequential(self, index: int) -> int:
        thread = self.threads[index]
        return sum(thread.sampled) + sum(
            max(self._sequential(child) for child in spawn.children) for spawn in thread.spawns
        )
