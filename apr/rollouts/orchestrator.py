"""From the sampled `run` to the joined messages: spawn, await, join, resume, cancel (section 3.1).

A thread decodes until its decoder stops it; `_stopped` looks at why:

    out of tokens    -> TRUNCATED
    spawn ... run    -> `_spawn`: the children start at once, the parent waits
    ... end          -> DONE; MALFORMED if it is a child that returns nothing readable

Every end of a thread goes through `_finish`, which after the last child resumes the parent in `_join`.

Where the first child to return something is enough, its siblings and all below them are left what they did
up to that moment (`_cut`). Moments are counted in tokens: a thread samples one in each, children begin when
their parent has spawned them, and it goes on when the last of them has ended, whatever the decoder has really
done first.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, cast

from apr.core.seeds import derive_seed
from apr.engine.interface import Decoder, Sampling, Segment
from apr.language import Malformed
from apr.language.thread_syntax import ThreadSyntax
from apr.rollouts.rollout import Limits, Request, Rollout, Spawn, Status, Thread

OUTRUN = "outrun by a sibling"
Admission = Literal["started_first", "critical_path"]


@dataclass(eq=False, repr=False)
class _LiveThread:
    """A thread in its tree while the rollout is decoded; its own key in the decoder."""

    thread: Thread
    request: Request
    path: tuple[int, ...]
    """Which child of which child of the root: the thread's identity, whatever its prompt says."""
    granted: int
    """Tokens that this thread and all below it may sample."""
    parent: "_LiveThread | None" = None
    start: int = 0
    """The moment at which it begins."""
    until: int = sys.maxsize
    """The moment at which it is outrun, if anybody has done so."""
    order: int = 0
    """Place of the rollout among those of this run."""
    spawned: list[list["_LiveThread"]] = field(default_factory=list)
    left: int = 0
    """Children of its last spawn that have not ended."""
    returned: list[int] = field(default_factory=list)
    budget: int = 0
    """Tokens that this thread may still sample or lend to its children; not while it waits for them."""
    now: int = 0
    """The moment up to which it has come; not while it waits."""

    def __post_init__(self) -> None:
        self.budget, self.now = self.granted, self.start

    def used(self) -> int:
        """Returns how many tokens this thread and all below it have sampled."""
        below = sum(child.used() for children in self.spawned for child in children)
        return sum(self.thread.sampled) + below


class Orchestrator:
    """Decodes rollouts: trees of threads that share a decoder with the threads of all other rollouts.

    What a rollout holds depends on its request, the limits and the model, not on what else is decoded.
    `admission` decides who comes first where the decoder has too little room for all: threads of the rollout
    that was started first, so that rollouts end soon and one after another; or those nearest to a root, on
    which the longest chains depend.
    """

    def __init__(
        self, decoder: Decoder, syntax: ThreadSyntax, limits: Limits, admission: Admission = "started_first"
    ):
        self._decoder, self._syntax, self._limits, self._admission = decoder, syntax, limits, admission
        self._open: set[_LiveThread] = set()
        self._roots: list[_LiveThread] = []

    def run(
        self, requests: Iterable[Request], progress: Callable[[list[Rollout], int], object] | None = None
    ) -> list[Rollout]:
        """The rollouts of `requests`, in their order. If the decoder fails, its threads are closed first.

        `progress(rollouts that ended since its last call, tokens sampled so far)` is called before each step
        of the decoder, and at the end; tokens count when their thread stops.
        """
        self._running = self._sampled = 0
        self._rollouts: dict[_LiveThread, Rollout] = {}
        self._ended: list[Rollout] = []
        self._roots = roots = []
        pending = iter(requests)
        try:
            while True:
                while self._running < self._decoder.capacity and (request := next(pending, None)) is not None:
                    roots.append(_begin(request, request.prompt, (), self._limits.max_tokens))
                    roots[-1].order = len(roots)
                    self._start(roots[-1])
                if progress is not None:
                    progress(self._ended, self._sampled)
                    self._ended = []
                if not self._open:
                    return [self._rollouts[root] for root in roots]
                for key, segment in self._decoder.step():
                    if (live := cast(_LiveThread, key)) in self._open:  # not outrun by another of this step
                        self._stopped(live, segment)
        finally:
            for live in self._open:
                self._decoder.close(live)
            self._open.clear()

    def threads(self) -> Iterator[tuple[tuple[int, ...], Thread, list[int]]]:
        """While `run` calls `progress`: each thread so far, depth first, its path, and what it samples now.

        The path says which child of which child of the root a thread is; the root's is empty. Numbers of
        threads are not set yet. What is sampled now is empty where the decoder cannot `peek`.
        """
        peek: Callable[[_LiveThread], list[int]] = getattr(self._decoder, "peek", lambda live: [])
        waiting = list(reversed(self._roots))
        while waiting:
            live = waiting.pop()
            yield live.path, live.thread, peek(live) if live in self._open else []
            waiting += [child for children in reversed(live.spawned) for child in reversed(children)]

    def _start(self, live: _LiveThread) -> None:
        if live.budget < 1:
            self._finish(live, Status.CANCELLED, "no tokens left to sample")
        elif len(live.thread.ids) >= self._limits.window:
            self._finish(live, Status.TRUNCATED, "the prompt fills the window")
        elif live.start >= live.until:
            self._finish(live, Status.CANCELLED, OUTRUN)
        else:
            key = derive_seed(live.request.seed, live.request.id, *live.path)
            sampling = Sampling(live.request.temperature, key)
            rank = live.order if self._admission == "started_first" else live.thread.depth
            self._decoder.open(live, live.thread.ids, sampling, self._limit(live), rank)
            self._open.add(live)
            self._running += 1

    def _stopped(self, live: _LiveThread, segment: Segment) -> None:
        self._running -= 1
        thread = live.thread
        segment = segment.first(live.until - live.now)  # it may have stopped in the step that it is outrun in
        self._sampled += len(segment.ids)
        live.budget -= len(segment.ids)
        live.now += len(segment.ids)
        _append(thread, segment.ids, True, segment.logprobs)
        if segment.reason == "length":
            if live.budget < 1:
                self._finish(live, Status.TRUNCATED, "no tokens left")
            elif len(thread.ids) >= self._limits.window:
                self._finish(live, Status.TRUNCATED, "window full")
            else:
                self._finish(live, Status.CANCELLED, OUTRUN)
        elif segment.ids[-1] == self._syntax.run:
            self._spawn(live)
        elif live.parent is None:
            self._finish(live, Status.DONE)
        elif isinstance(returned := self._syntax.returned(thread.ids), Malformed):
            self._finish(live, Status.MALFORMED, _say(returned))
        else:
            live.returned = returned
            self._finish(live, Status.DONE)

    def _spawn(self, live: _LiveThread) -> None:
        thread, limits = live.thread, self._limits
        messages = self._syntax.messages(thread.ids)
        if isinstance(messages, Malformed):
            self._finish(live, Status.MALFORMED, _say(messages))
        elif thread.depth >= limits.max_depth:
            self._finish(live, Status.MALFORMED, f"spawn at depth {thread.depth}")
        elif len(messages) > limits.max_children:
            self._finish(live, Status.MALFORMED, f"spawn of {len(messages)} children")
        else:
            thread.status = Status.WAITING
            share = live.budget // len(messages)
            first = sum(len(children) for children in live.spawned)
            children = [
                _begin(live.request, self._syntax.child_prompt(message), (*live.path, place), share, live)
                for place, message in enumerate(messages, start=first)
            ]
            thread.spawns.append(Spawn(at=len(thread.ids), children=[]))
            live.spawned.append(children)
            live.left = len(children)
            for child in children:
                self._start(child)

    def _finish(self, live: _LiveThread, status: Status, reason: str = "") -> None:
        live.thread.status, live.thread.reason = status, reason
        if live in self._open:
            self._open.remove(live)
            self._decoder.close(live)
        parent = live.parent
        if parent is None:
            self._rollouts[live] = _rollout(live)
            self._ended.append(self._rollouts[live])
            return
        if status != Status.DONE:
            live.returned = self._syntax.nothing
        if live.request.join == "any" and status == Status.DONE and live.returned != self._syntax.nothing:
            for sibling in parent.spawned[-1]:
                self._cut(sibling, live.now)
        parent.left -= 1
        if not parent.left:
            self._join(parent)

    def _cut(self, live: _LiveThread, until: int) -> None:
        """Leaves a thread, and all below it, what they did up to a moment, whether it has done more or not.

        What stops at that moment by itself has stopped; what a thread would go on with after its children is
        later.
        """
        live.until = min(live.until, until)
        thread, now, at = live.thread, live.start, live.thread.prompt_length
        for number, (spawn, children) in enumerate(zip(thread.spawns, live.spawned, strict=True)):
            ran = sum(thread.sampled[at : spawn.at])
            if now + ran > until:
                return self._end(live, number, _behind(thread, at, until - now))
            for child in children:
                self._cut(child, until)
            if any(child.thread.status in (Status.RUNNING, Status.WAITING) for child in children):
                return None
            now, at = max(child.now for child in children), spawn.at
            if now >= until:
                return self._end(live, number + 1, at)
        if thread.status == Status.RUNNING and now < until:
            self._decoder.shorten(live, len(thread.ids) + until - now)
        elif thread.status == Status.RUNNING or sum(thread.sampled[at:]) > until - now:
            self._end(live, len(thread.spawns), _behind(thread, at, until - now))
        return None

    def _end(self, live: _LiveThread, spawns: int, length: int) -> None:
        """Ends an outrun thread at its first so many spawns and tokens."""
        thread = live.thread
        for entries in (thread.ids, thread.sampled, thread.logprobs):
            del entries[length:]
        for child in (child for children in live.spawned[spawns:] for child in children):
            self._forget(child)
        del thread.spawns[spawns:], live.spawned[spawns:]
        live.now = live.until
        if thread.status in (Status.RUNNING, Status.WAITING):
            self._running -= thread.status == Status.RUNNING
            self._finish(live, Status.CANCELLED, OUTRUN)
        else:
            thread.status, thread.reason, live.returned = Status.CANCELLED, OUTRUN, self._syntax.nothing

    def _forget(self, live: _LiveThread) -> None:
        """Closes a thread that will not have been, and all below it."""
        if live in self._open:
            self._running -= live.thread.status == Status.RUNNING
            self._open.remove(live)
            self._decoder.close(live)
        for child in (child for children in live.spawned for child in children):
            self._forget(child)

    def _join(self, live: _LiveThread) -> None:
        """Appends what the children returned, in spawn order, and lets the parent decode on."""
        joined = self._syntax.joined([child.returned for child in live.spawned[-1]])
        live.budget = live.granted - live.used()
        live.now = min(live.until, max(child.now for child in live.spawned[-1]))
        if live.now >= live.until:
            self._finish(live, Status.CANCELLED, OUTRUN)
        elif live.budget < 1:
            self._finish(live, Status.TRUNCATED, "no tokens left")
        elif len(live.thread.ids) + len(joined) >= self._limits.window:
            self._finish(live, Status.TRUNCATED, "joined messages do not fit the window")
        else:
            _append(live.thread, joined, False, [0.0] * len(joined))
            live.thread.status = Status.RUNNING
            self._decoder.extend(live, joined, self._limit(live))
            self._running += 1

    def _limit(self, live: _LiveThread) -> int:
        return min(self._limits.window, len(live.thread.ids) + min(live.budget, live.until - live.now))


def _begin(
    request: Request,
    prompt: list[int],
    path: tuple[int, ...],
    granted: int,
    parent: _LiveThread | None = None,
) -> _LiveThread:
    size = len(prompt)
    thread = Thread(0, -1, len(path), size, list(prompt), [False] * size, [0.0] * size)
    if parent is None:
        return _LiveThread(thread, request, path, granted)
    return _LiveThread(thread, request, path, granted, parent, parent.now, parent.until, parent.order)


def _behind(thread: Thread, at: int, count: int) -> int:
    """Returns the length of a thread that ends when it has sampled so many tokens behind a length."""
    places = (place for place in range(at, len(thread.ids)) if thread.sampled[place])
    return next(islice(places, count, None), len(thread.ids))


def _append(thread: Thread, ids: list[int], sampled: bool, logprobs: list[float]) -> None:
    thread.ids.extend(ids)
    thread.sampled.extend([sampled] * len(ids))
    thread.logprobs.extend(logprobs)


def _say(malformed: Malformed) -> str:
    return f"{malformed.reason} (token {malformed.position})"


def _rollout(root: _LiveThread) -> Rollout:
    """Numbers the threads level by level, so that their order does not depend on who finished first."""
    every = [root]
    for live in every:
        for spawn, children in zip(live.thread.spawns, live.spawned, strict=True):
            for child in children:
                child.thread.index, child.thread.parent = len(every), live.thread.index
                spawn.children.append(child.thread.index)
                every.append(child)
    return Rollout(root.request.id, [live.thread for live in every])
