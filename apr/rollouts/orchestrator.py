"""From the sampled `run` to the joined messages: spawn, await, join, resume, cancel (section 3.1).

A thread decodes until its decoder stops it; `_stopped` looks at why:

    out of tokens    -> TRUNCATED
    spawn ... run    -> `_spawn`: the children start at once, the parent waits
    ... end          -> DONE; MALFORMED if it is a child that returns nothing readable

Every end of a thread goes through `_finish`, which after the last child resumes the parent in `_join`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
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
    budget: int
    """Tokens that this thread may still sample or lend to its children."""
    parent: "_LiveThread | None" = None
    order: int = 0
    """Place of the rollout among those of this run."""
    spawned: list[list["_LiveThread"]] = field(default_factory=list)
    left: int = 0
    """Children of its last spawn that have not ended."""
    returned: list[int] = field(default_factory=list)
    most: int | None = None
    """Length of the thread at which a sibling that has returned something outruns it."""


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
                for live, segment in self._decoder.step():
                    self._stopped(cast(_LiveThread, live), segment)
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
        if live.most is not None:  # it may have stopped in the same step as its sibling
            segment = segment.first(live.most - len(thread.ids))
        self._sampled += len(segment.ids)
        live.budget -= len(segment.ids)
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
            live.budget -= share * len(messages)
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
        parent.budget += live.budget
        if live.request.join == "any" and status == Status.DONE and live.returned != self._syntax.nothing:
            for sibling in parent.spawned[-1]:
                self._outrun(sibling, by=live)
        parent.left -= 1
        if not parent.left:
            self._join(parent)

    def _outrun(self, live: _LiveThread, by: _LiveThread) -> None:
        """Leaves a thread no more tokens than its sibling `by` has, however many it has decoded so far.

        Neither has children of its own.
        """
        thread = live.thread
        live.most = thread.prompt_length + sum(by.thread.sampled)
        if live in self._open:
            self._decoder.shorten(live, live.most)
        elif live.parent is not None and len(thread.ids) > live.most:
            live.parent.budget += len(thread.ids) - live.most
            for entries in (thread.ids, thread.sampled, thread.logprobs):
                del entries[live.most :]
            thread.status, thread.reason = Status.CANCELLED, OUTRUN
            live.returned = self._syntax.nothing

    def _join(self, live: _LiveThread) -> None:
        """Appends what the children returned, in spawn order, and lets the parent decode on."""
        joined = self._syntax.joined([child.returned for child in live.spawned[-1]])
        if live.budget < 1:
            self._finish(live, Status.TRUNCATED, "no tokens left")
        elif len(live.thread.ids) + len(joined) >= self._limits.window:
            self._finish(live, Status.TRUNCATED, "joined messages do not fit the window")
        else:
            _append(live.thread, joined, False, [0.0] * len(joined))
            live.thread.status = Status.RUNNING
            self._decoder.extend(live, joined, self._limit(live))
            self._running += 1

    def _limit(self, live: _LiveThread) -> int:
        return min(self._limits.window, len(live.thread.ids) + live.budget)


def _begin(
    request: Request, prompt: list[int], path: tuple[int, ...], budget: int, parent: _LiveThread | None = None
) -> _LiveThread:
    size = len(prompt)
    thread = Thread(0, -1, len(path), size, list(prompt), [False] * size, [0.0] * size)
    return _LiveThread(thread, request, path, budget, parent, parent.order if parent else 0)


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
