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
from apr.language.events import Malformed
from apr.language.thread_syntax import ThreadSyntax
from apr.rollouts.rollout import Limits, Request, Rollout, Spawn, Status, Thread

OUTRUN = "outrun by a sibling"
Policy = Literal["started_first", "critical_path"]


@dataclass(eq=False, repr=False)
class _Node:
    """A thread in its tree while the rollout is decoded; its own key in the decoder."""

    thread: Thread
    request: Request
    path: tuple[int, ...]
    """Which child of which child of the root: the thread's identity, whatever its prompt says."""
    budget: int
    """Tokens that this thread may still sample or lend to its children."""
    parent: "_Node | None" = None
    order: int = 0
    """Place of the rollout among those of this run."""
    spawned: list[list["_Node"]] = field(default_factory=list)
    left: int = 0
    """Children of its last spawn that have not ended."""
    returned: list[int] = field(default_factory=list)
    most: int | None = None
    """Length of the thread at which a sibling that has returned something outruns it."""


class Orchestrator:
    """Decodes rollouts: trees of threads that share a decoder with the threads of all other rollouts.

    What a rollout holds depends on its request, the limits and the model, not on what else is decoded.
    `policy` decides who comes first where the decoder has too little room for all: threads of the rollout
    that was started first, so that rollouts end soon and one after another; or those nearest to a root, on
    which the longest chains depend.
    """

    def __init__(
        self, decoder: Decoder, syntax: ThreadSyntax, limits: Limits, policy: Policy = "started_first"
    ):
        self._decoder, self._syntax, self._limits, self._policy = decoder, syntax, limits, policy
        self._open: set[_Node] = set()
        self._roots: list[_Node] = []

    def run(
        self, requests: Iterable[Request], progress: Callable[[list[Rollout], int], object] | None = None
    ) -> list[Rollout]:
        """The rollouts of `requests`, in their order. If the decoder fails, its threads are closed first.

        `progress(rollouts that ended since its last call, tokens sampled so far)` is called before each step
        of the decoder, and at the end; tokens count when their thread stops.
        """
        self._running = self._sampled = 0
        self._rollouts: dict[_Node, Rollout] = {}
        self._ended: list[Rollout] = []
        self._roots = roots = []
        pending = iter(requests)
        try:
            while True:
                while self._running < self._decoder.capacity and (request := next(pending, None)) is not None:
                    roots.append(_node(request, request.prompt, (), self._limits.max_tokens))
                    roots[-1].order = len(roots)
                    self._start(roots[-1])
                if progress is not None:
                    progress(self._ended, self._sampled)
                    self._ended = []
                if not self._open:
                    return [self._rollouts[root] for root in roots]
                for node, segment in self._decoder.step():
                    self._stopped(cast(_Node, node), segment)
        finally:
            for node in self._open:
                self._decoder.close(node)
            self._open.clear()

    def threads(self) -> Iterator[tuple[tuple[int, ...], Thread, list[int]]]:
        """While `run` calls `progress`: each thread so far, depth first, its path, and what it samples now.

        The path says which child of which child of the root a thread is; the root's is empty. Numbers of
        threads are not set yet. What is sampled now is empty where the decoder cannot `peek`.
        """
        peek: Callable[[_Node], list[int]] = getattr(self._decoder, "peek", lambda node: [])
        waiting = list(reversed(self._roots))
        while waiting:
            node = waiting.pop()
            yield node.path, node.thread, peek(node) if node in self._open else []
            waiting += [child for children in reversed(node.spawned) for child in reversed(children)]

    def _start(self, node: _Node) -> None:
        if node.budget < 1:
            self._finish(node, Status.CANCELLED, "no tokens left to sample")
        elif len(node.thread.ids) >= self._limits.window:
            self._finish(node, Status.TRUNCATED, "the prompt fills the window")
        else:
            key = derive_seed(node.request.seed, node.request.id, *node.path)
            sampling = Sampling(node.request.temperature, key)
            rank = node.order if self._policy == "started_first" else node.thread.depth
            self._decoder.open(node, node.thread.ids, sampling, self._limit(node), rank)
            self._open.add(node)
            self._running += 1

    def _stopped(self, node: _Node, segment: Segment) -> None:
        self._running -= 1
        thread = node.thread
        if node.most is not None:  # it may have stopped in the same step as its sibling
            segment = segment.first(node.most - len(thread.ids))
        self._sampled += len(segment.ids)
        node.budget -= len(segment.ids)
        _append(thread, segment.ids, True, segment.logprobs)
        if segment.reason == "length":
            if node.budget < 1:
                self._finish(node, Status.TRUNCATED, "no tokens left")
            elif len(thread.ids) >= self._limits.window:
                self._finish(node, Status.TRUNCATED, "window full")
            else:
                self._finish(node, Status.CANCELLED, OUTRUN)
        elif segment.ids[-1] == self._syntax.run:
            self._spawn(node)
        elif node.parent is None:
            self._finish(node, Status.DONE)
        elif isinstance(returned := self._syntax.returned(thread.ids), Malformed):
            self._finish(node, Status.MALFORMED, _say(returned))
        else:
            node.returned = returned
            self._finish(node, Status.DONE)

    def _spawn(self, node: _Node) -> None:
        thread, limits = node.thread, self._limits
        messages = self._syntax.messages(thread.ids)
        if isinstance(messages, Malformed):
            self._finish(node, Status.MALFORMED, _say(messages))
        elif thread.depth >= limits.max_depth:
            self._finish(node, Status.MALFORMED, f"spawn at depth {thread.depth}")
        elif len(messages) > limits.max_children:
            self._finish(node, Status.MALFORMED, f"spawn of {len(messages)} children")
        else:
            thread.status = Status.WAITING
            share = node.budget // len(messages)
            node.budget -= share * len(messages)
            first = sum(len(children) for children in node.spawned)
            children = [
                _node(node.request, self._syntax.child_prompt(message), (*node.path, place), share, node)
                for place, message in enumerate(messages, start=first)
            ]
            thread.spawns.append(Spawn(at=len(thread.ids), children=[]))
            node.spawned.append(children)
            node.left = len(children)
            for child in children:
                self._start(child)

    def _finish(self, node: _Node, status: Status, reason: str = "") -> None:
        node.thread.status, node.thread.reason = status, reason
        if node in self._open:
            self._open.remove(node)
            self._decoder.close(node)
        parent = node.parent
        if parent is None:
            self._rollouts[node] = _rollout(node)
            self._ended.append(self._rollouts[node])
            return
        if status != Status.DONE:
            node.returned = self._syntax.nothing
        parent.budget += node.budget
        if node.request.join == "any" and status == Status.DONE and node.returned != self._syntax.nothing:
            for sibling in parent.spawned[-1]:
                self._outrun(sibling, by=node)
        parent.left -= 1
        if not parent.left:
            self._join(parent)

    def _outrun(self, node: _Node, by: _Node) -> None:
        """Leaves a thread no more tokens than its sibling `by` has, however many it has decoded so far.

        Neither has children of its own.
        """
        thread = node.thread
        node.most = thread.prompt_length + sum(by.thread.sampled)
        if node in self._open:
            self._decoder.shorten(node, node.most)
        elif node.parent is not None and len(thread.ids) > node.most:
            node.parent.budget += len(thread.ids) - node.most
            for entries in (thread.ids, thread.sampled, thread.logprobs):
                del entries[node.most :]
            thread.status, thread.reason = Status.CANCELLED, OUTRUN
            node.returned = self._syntax.nothing

    def _join(self, node: _Node) -> None:
        """Appends what the children returned, in spawn order, and lets the parent decode on."""
        joined = self._syntax.joined([child.returned for child in node.spawned[-1]])
        if node.budget < 1:
            self._finish(node, Status.TRUNCATED, "no tokens left")
        elif len(node.thread.ids) + len(joined) >= self._limits.window:
            self._finish(node, Status.TRUNCATED, "joined messages do not fit the window")
        else:
            _append(node.thread, joined, False, [0.0] * len(joined))
            node.thread.status = Status.RUNNING
            self._decoder.extend(node, joined, self._limit(node))
            self._running += 1

    def _limit(self, node: _Node) -> int:
        return min(self._limits.window, len(node.thread.ids) + node.budget)


def _node(
    request: Request, prompt: list[int], path: tuple[int, ...], budget: int, parent: _Node | None = None
) -> _Node:
    size = len(prompt)
    thread = Thread(0, -1, len(path), size, list(prompt), [False] * size, [0.0] * size)
    return _Node(thread, request, path, budget, parent, parent.order if parent else 0)


def _append(thread: Thread, ids: list[int], sampled: bool, logprobs: list[float]) -> None:
    thread.ids.extend(ids)
    thread.sampled.extend([sampled] * len(ids))
    thread.logprobs.extend(logprobs)


def _say(malformed: Malformed) -> str:
    return f"{malformed.reason} (token {malformed.position})"


def _rollout(root: _Node) -> Rollout:
    """Numbers the threads level by level, so that their order does not depend on who finished first."""
    nodes = [root]
    for node in nodes:
        for spawn, children in zip(node.thread.spawns, node.spawned, strict=True):
            for child in children:
                child.thread.index, child.thread.parent = len(nodes), node.thread.index
                spawn.children.append(child.thread.index)
                nodes.append(child)
    return Rollout(root.request.id, [node.thread for node in nodes])
