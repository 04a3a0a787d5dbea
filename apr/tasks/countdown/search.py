"""The three symbolic solvers, writing what they do as events of the thread language (paper, section 3.2).

One search serves all: a node is taken from a queue, and its children are searched depth-first at once,
queued, or (APR's root) spawned as threads, each of which runs the same search below its node.
"""

import random
from dataclasses import dataclass, field
from heapq import heappop, heappush

from apr.core.params import TraceMethod
from apr.language import events as ev
from apr.language.operation import Operation, legal_operations
from apr.tasks.countdown.expand import HEURISTICS, Heuristic, State, expand
from apr.tasks.countdown.problem import Problem

ROOT_THREAD = -1


@dataclass
class TraceThread:
    """One thread of a demonstration; `parent` indexes the trace's threads, `ROOT_THREAD` for the root."""

    parent: int
    events: list[ev.Event]
    path: ev.Path | None = None
    """The solution this thread found."""


@dataclass
class Trace:
    """A solver's demonstration on one problem: the root first, children in the order of spawning."""

    problem: Problem
    threads: list[TraceThread] = field(default_factory=list)

    @property
    def solved(self) -> bool:
        return self.threads[0].path is not None

    @property
    def children(self) -> int:
        return len(self.threads) - 1


@dataclass(frozen=True)
class Choices:
    """How one search is run."""

    beam: int
    heuristic: Heuristic
    promising: float
    """Probability that a node's children are not queued."""
    best_first: bool = True
    """Order of the queue: by heuristic, or first in first out."""
    spawn_depth: int = -1
    """Deepest node whose children are spawned instead of searched at once; -1: none."""


def solve_trace(problem: Problem, method: TraceMethod, max_value: int | None, rng: random.Random) -> Trace:
    """Runs the solver of `method` on `problem`."""
    beam = rng.randint(*method.beam)
    heuristic = HEURISTICS[method.heuristic]
    child = Choices(beam, heuristic, method.child_promising)
    if method.solver == "sos":
        choices = Choices(beam, heuristic, promising=float(rng.random() < 0.5), best_first=False)
    elif method.solver == "sos_plus":
        choices = Choices(beam, heuristic, method.promising)
    else:
        choices = Choices(beam, heuristic, method.promising, spawn_depth=method.spawn_depth)
        beam = rng.randint(beam, max(beam, method.child_beam))
        child = Choices(beam, heuristic, method.child_promising)
    trace = Trace(problem)
    root = TraceThread(ROOT_THREAD, [ev.RootPrompt(problem.target, problem.numbers, None)])
    trace.threads.append(root)
    search = _Search(trace, root, choices, child, max_value, rng)
    root.path = search.run((), problem.numbers)
    root.events.append(ev.Answer(root.path))
    return trace


class _Search:
    """One thread's search."""

    def __init__(self, trace: Trace, thread: TraceThread, choices: Choices, child: Choices,
                 max_value: int | None, rng: random.Random):
        self.trace = trace
        self.thread = thread
        self.choices = choices
        self.child = child
        self.max_value = max_value
        self.rng = rng
        self.target = trace.problem.target

    def run(self, lines: tuple[ev.Line, ...], state: State) -> ev.Path | None:
        """Searches below `state`, reached by `lines`, which the prompt has shown."""
        queue: list[tuple[int, int, tuple[ev.Line, ...], State]] = [(0, 0, lines, state)]
        queued = 1
        first = True
        while queue:
            _, _, lines, state = heappop(queue)
            if not first:
                self.thread.events.append(ev.Goto(lines))
            first = False
            if len(state) == 2:
                path = self._leaves(lines, state)
            else:
                children = self._children(lines, state)
                if self.rng.random() >= self.choices.promising:
                    self.thread.events.append(ev.Listing())
                    for child in children:
                        self.thread.events.append(child[-1])
                        state = child[-1].state
                        rank = self.choices.heuristic(state, self.target) if self.choices.best_first else 0
                        heappush(queue, (rank, queued, child, state))
                        queued += 1
                    continue
                if len(lines) <= self.choices.spawn_depth and len(children) >= 2:
                    path = self._spawn(children)
                else:
                    path = self._depth_first(children)
            if path is not None:
                return path
        return None

    def _children(self, lines: tuple[ev.Line, ...], state: State) -> list[tuple[ev.Line, ...]]:
        depth = len(lines) + 1
        choices = self.choices
        successors = expand(state, self.target, choices.beam, self.max_value, choices.heuristic)
        return [(*lines, ev.Line(depth, operation, state[:-1])) for operation, state in successors]

    def _depth_first(self, children: list[tuple[ev.Line, ...]]) -> ev.Path | None:
        for child in children:
            self.thread.events.append(child[-1])
            state = child[-1].state
            if len(state) == 2:
                path = self._leaves(child, state)
            else:
                path = self._depth_first(self._children(child, state))
            if path is not None:
                return path
        return None

    def _leaves(self, lines: tuple[ev.Line, ...], state: State) -> ev.Path | None:
        x, y = state
        for operation in legal_operations(x, y, self.max_value):
            result = operation.result
            comparison = "!" if result == self.target else "<" if result < self.target else ">"
            self.thread.events.append(ev.Leaf(operation.op, result, comparison))
            if comparison == "!":
                return _path(lines, operation)
        return None

    def _spawn(self, children: list[tuple[ev.Line, ...]]) -> ev.Path | None:
        nodes = tuple(ev.Node(self.target, child) for child in children)
        self.thread.events.append(ev.Spawn(nodes))
        parent = next(i for i, thread in enumerate(self.trace.threads) if thread is self.thread)
        paths = []
        for node in nodes:
            thread = TraceThread(parent, [ev.ChildPrompt(node)])
            self.trace.threads.append(thread)
            search = _Search(self.trace, thread, self.child, self.child, self.max_value, self.rng)
            thread.path = search.run(node.lines, node.lines[-1].state)
            thread.events.append(ev.Join(thread.path))
            paths.append(thread.path)
        self.thread.events.append(ev.Joined(tuple(paths)))
        return next((path for path in paths if path is not None), None)


def _path(lines: tuple[ev.Line, ...], last: Operation) -> ev.Path:
    return (*(line.operation for line in lines), last)
