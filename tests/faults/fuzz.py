"""Hostile models: random and mutated token streams through grammar, orchestrator and verifier.

    python -m tests.faults.fuzz --streams 1000000 --seed 0

A stream is what one thread decodes up to its stop: noise; a real demonstration with some tokens changed, cut,
doubled or moved; or a spawn of too many, empty, or identical messages. Threads nest up to four deep, and
parents wait for all of their children or for the first success. Nothing may raise or hang, every rollout ends
within its budgets, with an answer or with a reason, and is judged.
"""

import argparse
import random
import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

import psutil

from apr.core.params import Params
from apr.core.seeds import derive_rng
from apr.engine.interface import Sampling, Segment
from apr.evaluation.results import ledger
from apr.language import Language
from apr.pipeline.plan import load_scale
from apr.rollouts.orchestrator import OUTRUN, Orchestrator
from apr.rollouts.rollout import Limits, Request, Rollout, Status, Thread
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.countdown.problem import Problem
from apr.tasks.problems import generate_problems
from apr.tasks.task import Task
from apr.training.traces import trace_rows

BATCH = 500
"""Rollouts of one run of the orchestrator."""


class HostileDecoder:
    """A `Decoder` whose threads decode hostile streams, each drawn from its key and its length."""

    capacity = 64

    def __init__(self, language: Language, demonstrations: dict[int, list[list[int]]]):
        """`demonstrations` of a thread, by the first token of its prompt."""
        self._language, self._demonstrations = language, demonstrations
        self._stop = language.syntax.stop_ids
        self._threads: dict[Hashable, tuple[list[int], Sampling, int]] = {}
        self._live: dict[Hashable, None] = {}
        self.streams = 0

    def open(
        self, key: Hashable, prompt: Sequence[int], sampling: Sampling, limit: int, rank: int = 0
    ) -> None:
        assert key not in self._threads and 0 < len(prompt) < limit
        self._threads[key] = list(prompt), sampling, limit
        self._live[key] = None

    def extend(self, key: Hashable, ids: Sequence[int], limit: int) -> None:
        text, sampling, _ = self._threads[key]
        assert key not in self._live and len(text) + len(ids) < limit
        self._threads[key] = [*text, *ids], sampling, limit
        self._live[key] = None

    def shorten(self, key: Hashable, limit: int) -> None:
        text, sampling, before = self._threads[key]
        if key in self._live:
            assert len(text) < limit
            self._threads[key] = text, sampling, min(limit, before)

    def close(self, key: Hashable) -> None:
        del self._threads[key]
        if key in self._live:
            del self._live[key]

    @property
    def busy(self) -> bool:
        return bool(self._live)

    def next(self) -> list[Hashable]:
        """Which of the live threads stop in the next step."""
        return list(self._live)

    def step(self) -> list[tuple[Hashable, Segment]]:
        stopped = []
        for key in self.next():
            del self._live[key]
            text, sampling, limit = self._threads[key]
            room = limit - len(text)
            ids: list[int] = []
            for token in self._stream(text[0], random.Random(f"{sampling.key} {len(text)}")):
                ids.append(token)
                if token in self._stop or len(ids) == room:
                    break
            reason = "stop" if ids[-1] in self._stop else "length"
            self._threads[key] = [*text, *ids], sampling, limit
            stopped.append((key, Segment(ids, [-1.0] * len(ids), reason)))
        self.streams += len(stopped)
        return stopped

    def _stream(self, role: int, rng: random.Random) -> Iterator[int]:
        kind = rng.random()
        if kind < 0.15:
            yield from self._spawn(rng)
        elif kind < 0.85:
            other = rng.choice(list(self._demonstrations))
            yield from self._mutated(self._demonstrations[role if rng.random() < 0.9 else other], rng)
        while True:
            yield from rng.choices(range(self._language.vocabulary.size), k=16)

    def _mutated(self, demonstrations: list[list[int]], rng: random.Random) -> list[int]:
        ids = list(rng.choice(demonstrations))
        for _ in range(rng.choice((0, 0, 1, 1, 2, 5, 20))):
            at = rng.randrange(len(ids) + 1)
            end = at + rng.choice((1, 1, 2, 8))
            match rng.randrange(4):
                case 0:
                    ids[at:end] = []
                case 1:
                    ids[at:at] = ids[at:end]
                case 2:
                    ids[at:end] = rng.choices(range(self._language.vocabulary.size), k=end - at)
                case 3:
                    there = rng.randrange(len(ids) + 1)
                    ids[there:there] = ids[at:end]
        return ids

    def _spawn(self, rng: random.Random) -> Iterator[int]:
        words = self._language.vocabulary.ids
        most = self._language.vocabulary.messages
        message = rng.choices(range(self._language.vocabulary.size), k=rng.choice((0, 1, 4)))
        yield words["spawn"]
        for count in range(rng.randint(1, most), 0, -1):
            yield words[f"#{count}"]
            yield from message
            if rng.random() < 0.3:
                yield rng.randrange(self._language.vocabulary.size)
        yield words["run"]


def demonstrations(task: Task, problems: Sequence[Problem]) -> dict[int, list[list[int]]]:
    """What threads of real traces sample, roots up to their spawn and after it, and children."""
    found = defaultdict(list)
    for problem in problems:
        for method in ("apr", "sos_plus", "nested"):
            for row in trace_rows(task, problem, method):
                ids, mask = row["token_ids"], task.language.syntax.sampled(row["token_ids"])
                starts = [i for i in range(len(ids)) if mask[i] and not (i and mask[i - 1])]
                for start in starts:
                    end = next((i for i in range(start, len(ids)) if not mask[i]), len(ids))
                    found[ids[0]].append(ids[start:end])
    return found


def check(task: Task, limits: Limits, problem: Problem, rollout: Rollout) -> str:
    """Raises `AssertionError` where a rollout breaks a promise; what became of it."""
    root, usage, row = rollout.threads[0], rollout.usage, judge(task, problem, rollout)
    assert root.status in (Status.DONE, Status.MALFORMED, Status.TRUNCATED)
    assert usage.total <= limits.max_tokens and 0 < usage.sequential <= usage.total
    assert usage.longest <= limits.window and usage.depth <= limits.max_depth
    for thread in rollout.threads:
        assert thread.status in (Status.DONE, Status.MALFORMED, Status.TRUNCATED, Status.CANCELLED)
        assert thread.reason or thread.status == Status.DONE
        assert len(thread.ids) == len(thread.sampled) == len(thread.logprobs)
        assert all(len(spawn.children) <= limits.max_children for spawn in thread.spawns)
        task.verify(problem, thread.ids)
    assert row.reason and row.status in ("done", "malformed", "truncated")
    assert (row.status == "done") == (row.answer is not None) and row.lenient >= row.strict
    spawned = [(thread.index, child, thread.depth + 1)
               for thread in rollout.threads for spawn in thread.spawns for child in spawn.children]
    assert spawned == [(thread.parent, thread.index, thread.depth) for thread in rollout.threads[1:]]
    counted = ledger(rollout)
    assert counted["threads"] == len(rollout.threads) == counted["children"] + 1
    return "solved" if row.strict else row.status


def nested(params: Params) -> Params:
    """The same with a method `nested`, of traces that are three deep."""
    apr = params.traces.methods["apr"]
    methods = params.traces.methods | {"nested": apr.model_copy(update={"depth": 3, "beam": (1, 4)})}
    return params.model_copy(update={"traces": params.traces.model_copy(update={"methods": methods})})


def waited(thread: Thread) -> bool:
    """Whether a thread has ended while it waited for its children."""
    return bool(thread.spawns) and len(thread.ids) == thread.spawns[-1].at


def fuzz(
    streams: int, seed: int, window: int = 96, depths: Sequence[int] = (0, 1, 1, 2, 3, 4)
) -> tuple[Counter[str], int]:
    """At least so many streams, threads nested as deep as one of `depths`: what became of the rollouts, and
    how many streams there were."""
    params = nested(load_scale("default"))
    settings = params.problems.model_copy(update={"validation": 200, "test": 0, "train": 0})
    task, found = open_task(params.model_copy(update={"problems": settings, "seed": 1})), Counter()
    language, problems = task.language, generate_problems(task)["validation"]
    decoder = HostileDecoder(language, demonstrations(open_task(params), problems))
    batch = 0
    while decoder.streams < streams:
        rng = derive_rng(seed, "fuzz", batch)
        depth = rng.choice(depths)
        limits = Limits(window, rng.choice((1, 50, 500, 5000)), rng.choice((1, 4, 10)), depth)
        owners = [rng.choice(problems) for _ in range(BATCH)]
        requests = [Request(f"{batch}/{n}", task.prompt(problem), 1.0, seed, rng.choice(("all", "any")))
                    for n, problem in enumerate(owners)]  # fmt: skip
        rollouts = Orchestrator(decoder, language.syntax, limits).run(requests)
        found.update(check(task, limits, *pair) for pair in zip(owners, rollouts, strict=True))
        threads = [thread for rollout in rollouts for thread in rollout.threads]
        found["children"] += sum(thread.depth > 0 for thread in threads)
        outrun = [thread for thread in threads if thread.reason == OUTRUN]
        found["outrun"] += len(outrun)
        found["outrun as they waited"] += sum(map(waited, outrun))
        found.update(f"children at depth {thread.depth}" for thread in threads if thread.depth > 1)
        batch += 1
    return found, decoder.streams


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", type=int, help="the only one; of several, if it is not given")
    args = parser.parse_args()
    depths = {} if args.depth is None else {"depths": (args.depth,)}
    fuzz(10_000, args.seed + 1, **depths)
    started, before = time.perf_counter(), psutil.Process().memory_info().rss
    found, streams = fuzz(args.streams, args.seed, **depths)
    grown = (psutil.Process().memory_info().rss - before) / 2**20
    became = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    seconds = time.perf_counter() - started
    print(f"{streams} streams in {seconds:.0f} s, {grown:.0f} MiB more memory; rollouts: {became}")
    assert grown < 100


if __name__ == "__main__":
    main()
