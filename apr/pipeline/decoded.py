"""What models decode: what their solvers write, and by how much models were seen to write more or less."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from apr.core.params import Params
from apr.evaluation.points import Point, condition_kind, point_columns
from apr.evaluation.teacher import as_rollout, draw, judge_trace
from apr.language import Language
from apr.tasks.countdown.problem import Problem
from apr.tasks.countdown.search import Trace

ROLLOUTS = 1000
"""That the solver writes for a job that decodes, at most."""


class Decoded(NamedTuple):
    """Means over rollouts of sampled tokens, all tokens, the sum of the threads' squared lengths, and sampled
    tokens that depend on each other; `longest`: tokens of one thread in `engine.slots`."""

    sampled: float
    tokens: float
    squares: float
    sequential: float
    longest: float


Rows = list[dict[str, Any]]
"""Of an evaluation."""
Habits = Mapping[tuple[str, str], tuple[float, float]]
"""By stage ("sft" or "rl") and `prompting`: tokens that a model samples over those that its solver writes,
greedily and at T = 1."""


def prompting(params: Params, method: str, condition: int | None) -> str:
    """What habits differ by: serial, or parallel with a number of children asked for or not."""
    if params.traces.methods[method].solver != "apr":
        return "serial" if condition is None else "budget"  # which cuts what a model samples
    return "free" if condition is None else "asked"


def habits_of(params: Params, written: Mapping[str, float], seen: Iterable[Mapping[str, str]]) -> Habits:
    """Of the rows of Figure 7 that were `seen` with `params`, where the solvers of each policy wrote so many
    tokens. Policies that are prompted alike have the habits of the last."""
    tokens = {(row["model"], row["stage"], float(row["temperature"])): float(row["tokens"]) for row in seen}
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for policy, expected in written.items():
        settings = params.rl.policies[policy]
        for stage in ("sft", "rl"):
            greedy, hot = tokens.get((policy, stage, 0.0)), tokens.get((policy, stage, 1.0))
            if greedy and hot:
                key = stage, prompting(params, settings.method, settings.children)
                found[key] = (greedy / expected, hot / expected)
    return found


class Decoder:
    """Decodes as the solvers write and as the `habits` say, of which there are none at first."""

    def __init__(self, params: Params, language: Language):
        self.params, self.language = params, language
        self.habits: Habits = {}
        self._draw = cache(lambda problem, point, method: draw(problem, point, method, params))
        self._written = cache(self._write)

    def decode(
        self, stages: Sequence[str], method: str, at: Sequence[Point], problems: Sequence[Problem]
    ) -> tuple[Decoded, Rows]:
        """Of a model whose habits are those of all `stages` in the mean; and the rows of its solver."""
        few = tuple(problems[: max(1, ROLLOUTS // len(at))])
        found, lengths, rows = self._written(method, tuple(at), few)
        habits = np.mean([[self._habit(stage, method, point) for point in at] for stage in stages], 0)
        habit = np.tile(habits, len(few))
        sampled, tokens, squares, sequential = found.T
        more = [habit * sampled, tokens + (habit - 1) * sampled, habit * squares, sequential]
        if self.params.traces.methods[method].solver != "apr":  # or children run beside each other
            more[-1] = habit * sequential
        longest = np.quantile(lengths, 1 - 1 / self.params.engine.slots)
        return Decoded(*map(float, [*np.mean(more, 1), longest])), rows

    def _habit(self, stage: str, method: str, point: Point) -> float:
        """Between the temperatures, and beyond, on a line."""
        greedy, hot = self.habits.get((stage, prompting(self.params, method, point.condition)), (1.0, 1.0))
        return greedy + (hot - greedy) * min(point.temperature, 1.0)

    def _write(
        self, method: str, at: Sequence[Point], few: Sequence[Problem]
    ) -> tuple[np.ndarray, list[int], Rows]:
        """Rollouts as the solver of `method` would write them, for each problem at each point: what `Decoded`
        has the means of, the lengths of their threads, and their rows."""
        window, kind = self.params.grammar.window, condition_kind(self.params, method, "sft")
        found, rows, lengths = [], Rows(), list[int]()
        for problem in few:
            asked_before = Counter[int | None]()
            for point in at:
                asked = point.condition if kind == "children" else None  # a token budget only cuts
                trace = self._draw(problem, Point(asked, 0.0, asked_before[asked]), method)
                asked_before[asked] += 1
                cut = window if asked is not None or point.condition is None else min(window, point.condition)
                rows.append(point_columns(method, "sft", problem, point, kind)
                            | judge_trace(self.language, trace, window))
                used, threads = self._usage(trace, cut, point.join == "any")
                found.append(used)
                lengths.extend(threads)
        return np.array(found, float), lengths, rows

    def _usage(self, trace: Trace, cut: int, first: bool) -> tuple[list[int], np.ndarray]:
        """What `Decoded` has the means of, for one trace, and the lengths of its threads.

        Threads are cut at `cut` tokens, children also where the `first` succeeds.
        """
        rollout = as_rollout(self.language, trace, cut)
        sampled = np.array([sum(thread.sampled) for thread in rollout.threads])
        given = np.array([len(thread.ids) for thread in rollout.threads]) - sampled
        found = [count for count, thread in zip(sampled[1:], trace.threads[1:], strict=True) if thread.path]
        if first and found:
            sampled[1:] = sampled[1:].clip(max=min(found))
        sampled = sampled.clip(max=np.maximum(cut - given, 0))
        lengths = sampled + given
        sequential = min(rollout.usage.sequential, sampled.sum())
        return [sampled.sum(), lengths.sum(), (lengths**2).sum(), sequential], lengths
