"""What the jobs of a scale cost, from its parameters alone: tokens, FLOPs, bytes, and hours of some devices.

No data is read. The first problems of each split are drawn again and the solvers run on them: their traces
are those that the jobs will write. A model is taken to decode what its solver writes, before and after RL.
`apr.engine.flops` says what passes cost.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.optimize import nnls

from apr.cli.plan import load_scale, nodes
from apr.core.errors import ParamsError
from apr.core.params import Params
from apr.countdown.generate import SPLITS, generate_problems
from apr.countdown.problem import PROBLEM_SCHEMA, Problem
from apr.engine.flops import DEVICES, Device, Sizes
from apr.eval.judge import EVAL_SCHEMA
from apr.eval.points import Point, condition_kind, point_columns, points
from apr.eval.teacher import as_rollout, draw, judge_trace, teacher_points
from apr.grammar import build_language
from apr.solvers.search import Trace
from apr.solvers.traces import CHUNK, chunk_table

UTILISATION = 0.4
"""Share of a peak that is reached, of FLOP/s as of bandwidth: assumed, not measured."""

TRACED, ROLLOUTS = 4 * CHUNK, 1000
"""Training problems that are traced, and rollouts that the solver writes for a job that decodes; at most."""
NUMBER = 4
"""Bytes of a weight, moment, key or value: all are float32."""
SFT_STATES, RL_STATES = 3, 2
"""Trainer states on disk at most: a new one is written before the oldest of those kept is removed."""
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


class Model(NamedTuple):
    """Sizes that FLOPs and bytes follow from, in numbers."""

    sizes: Sizes
    parameters: int
    cached: int
    """Keys and values of a token."""
    orthogonalized: int
    """FLOPs of a step of Muon; 0 under AdamW."""


def model_of(params: Params) -> Model:
    """Raises `ParamsError` if training starts from another model, whose size the parameters do not say."""
    from apr.sft.muon import ITERATIONS

    if params.sft.base is not None:
        raise ParamsError(f"sft.base: {params.sft.base!r} is not allowed; allowed: null, as the parameters "
                          "do not say the size of another model")
    model, hidden = params.model, params.model.hidden
    keys = hidden // model.heads * model.kv_heads
    layer = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden), *3 * [(hidden, model.ffn)]]
    weights = model.layers * sum(rows * columns for rows, columns in layer)
    words = build_language(params.grammar, params.problems).vocabulary.size * hidden
    norms = (2 * model.layers + 1) * hidden
    muon = sum(4 * min(m) ** 2 * max(m) + 2 * min(m) ** 3 for m in layer) * ITERATIONS * model.layers
    return Model(
        sizes=Sizes(weights + words, attention=model.layers * hidden),
        parameters=weights + norms + words * (1 if model.tie_embeddings else 2),
        cached=2 * model.layers * keys,
        orthogonalized=muon if params.sft.optimizer == "muon" else 0,
    )  # fmt: skip


class Cost(NamedTuple):
    """Of one job. `tokens`: written, trained on or sampled; FLOPs: `trained` in `precision`, `decoded` in
    float32; bytes: `read` from weights and cache by decoding, `kept` on disk, and on disk `until` it ends;
    `units`: rollouts, or what a job without a model takes its time for."""

    tokens: float = 0
    trained: float = 0
    decoded: float = 0
    read: float = 0
    kept: float = 0
    until: float = 0
    units: float = 0
    precision: str = "float32"

    @property
    def flops(self) -> float:
        return self.trained + self.decoded

    def hours(self, device: Device) -> float:
        """At `UTILISATION`: training is bound by FLOP/s, decoding by FLOP/s or by bandwidth."""
        decoding = max(self.decoded / device.flops["float32"], self.read / device.bandwidth)
        return (self.trained / device.flops[self.precision] + decoding) / UTILISATION / 3600


class Decoded(NamedTuple):
    """Means over rollouts of sampled tokens, all tokens, the sum of the threads' squared lengths, and sampled
    tokens that depend on each other; `longest`: tokens of one thread in `engine.slots`."""

    sampled: float
    tokens: float
    squares: float
    sequential: float
    longest: float


class TrainedOn(NamedTuple):
    """Threads of an epoch of SFT, their mean tokens, and `context`: sum of squared lengths over tokens."""

    threads: float
    mean: float
    context: float


class Estimate:
    """`costs` of every job of `params`, by its id. Raises `ParamsError`."""

    def __init__(self, params: Params):
        self.params, self.model = params, model_of(params)
        self.language = build_language(params.grammar, params.problems)
        self._draw = cache(lambda problem, point, method: draw(problem, point, method, params))
        self.trained_on: dict[str, TrainedOn] = {}
        """By method; its traces come before its SFT."""
        self.costs: dict[str, Cost] = {}
        for name in nodes(params):
            stage, *which = name.split("/")
            cost = getattr(self, f"_{stage}", None)
            self.costs[name] = cost(*which) if cost else self._results()

    @cached_property
    def problems(self) -> dict[str, list[Problem]]:
        """The first training problems, and all others."""
        settings = self.params.problems
        drawn = settings.model_copy(update={"train": min(settings.train, TRACED)})
        return generate_problems(drawn, self.params.seed)

    def _problems(self) -> Cost:
        kept, wanted = 0.0, {split: getattr(self.params.problems, split) for split in SPLITS}
        for split, problems in self.problems.items():
            rows = [{"problem_id": p.id, "numbers": p.numbers, "target": p.target} for p in problems]
            kept += parquet_bytes(rows, PROBLEM_SCHEMA, wanted[split])
        return Cost(kept=kept, units=sum(wanted.values()))

    def _tokenizer(self) -> Cost:
        return Cost(units=1)

    def _traces(self, method: str) -> Cost:
        params = self.params
        problems, size, file = self.problems["train"][: params.traces.problems], [0], BytesIO()
        tables = [chunk_table(problems[start : start + CHUNK], method, params, self.language)
                  for start in range(0, len(problems), CHUNK)]  # fmt: skip
        with pq.ParquetWriter(file, tables[0].schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(1, len(table)))
                size.append(file.tell())
        table, scale = pa.concat_tables(tables), params.traces.problems / len(problems)
        lengths = table["length"].to_numpy().astype(float)
        roots = np.array(table["role"].to_pylist()) == "root"
        seen = np.where(roots | table["solved"].to_numpy(), 1.0, params.sft.child_share)
        if not lengths.sum():
            raise ParamsError(f"grammar.window: {params.grammar.window} is not allowed; allowed: more, as no "
                              f"trace of {method} fits")
        self.trained_on[method] = TrainedOn(
            threads=float(seen.sum() * scale), mean=float(seen @ lengths / seen.sum()),
            context=float(seen @ lengths**2 / (seen @ lengths)),
        )  # fmt: skip
        return Cost(tokens=lengths.sum() * scale, kept=file.tell() + (size[-1] - size[0]) * (scale - 1))

    def _sft(self, method: str) -> Cost:
        sft, model = self.params.sft, self.model
        tokens = sft.tokens[method]
        steps = tokens / sft.row_tokens / sft.rows_per_step
        flops = 3 * model.sizes.forward(tokens, tokens * self.trained_on[method].context)
        moments = 1 if model.orthogonalized else 2
        return Cost(tokens=tokens, trained=flops + steps * model.orthogonalized, precision=sft.precision,
                    kept=NUMBER * model.parameters,
                    until=SFT_STATES * (1 + moments) * NUMBER * model.parameters)

    def _rl(self, policy: str) -> Cost:
        rl, settings, model = self.params.rl, self.params.rl.policies[policy], self.model
        at = [Point(settings.children, rl.temperature, sample) for sample in range(rl.group)]
        decoded, _ = self._decode(settings.method, at, self.problems["train"])
        steps, rollouts = settings.steps or rl.steps, rl.prompts * rl.group
        # The policy forward and backward in each update, the reference forward once. Groups without signal
        # are not scored, but how many there are depends on what is learnt: all are counted.
        passes = rl.inner_updates * (2 if rl.lora else 3) + (settings.kl > 0)
        forward = model.sizes.forward(steps * rollouts * decoded.tokens, steps * rollouts * decoded.squares)
        return self._decoding(decoded, steps, rollouts)._replace(
            trained=passes * forward,
            kept=NUMBER * model.parameters,
            until=RL_STATES * (3 if rl.optimizer == "adamw" else 1) * NUMBER * model.parameters,
        )  # fmt: skip

    def _evaluate(self, stage: str, model: str) -> Cost:
        at = points(self.params, model, stage)
        count = self.params.eval.problems
        decoded, rows = self._decode(self._method(stage, model), at, self.problems["test"][:count])
        cost = self._decoding(decoded, 1, count * len(at))
        kept = parquet_bytes(rows, EVAL_SCHEMA, count * len(at))
        return cost._replace(kept=kept, units=count * len(at))

    def _latency(self, stage: str, model: str) -> Cost:
        greedy = [point for point in points(self.params, model, stage) if point.temperature == 0]
        count = self.params.eval.latency_problems
        at = greedy or [Point(None, 0.0, 0)]
        decoded, _ = self._decode(self._method(stage, model), at, self.problems["test"][:count])
        return self._decoding(decoded, count * len(at), 1)

    def _teacher(self, method: str) -> Cost:
        at, count = teacher_points(self.params, method), self.params.eval.problems
        decoded, rows = self._decode(method, at, self.problems["test"][:count])
        return Cost(tokens=count * len(at) * decoded.sampled, units=count * len(at),
                    kept=parquet_bytes(rows, EVAL_SCHEMA, count * len(at)))

    def _results(self) -> Cost:
        """Figures, claims, checks: they read every rollout."""
        return Cost(units=sum(cost.units for name, cost in self.costs.items() if name.startswith("evaluate")))

    def _method(self, stage: str, model: str) -> str:
        return model if stage == "sft" else self.params.rl.policies[model].method

    def _decode(
        self, method: str, at: Sequence[Point], problems: Sequence[Problem]
    ) -> tuple[Decoded, list[dict[str, Any]]]:
        """Rollouts as the solver of `method` would write them, and their rows of an evaluation."""
        window, kind = self.params.grammar.window, condition_kind(self.params, method, "sft")
        found, rows = [], []
        lengths: list[int] = []
        for problem in problems[: max(1, ROLLOUTS // len(at))]:
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
        longest = np.quantile(lengths, 1 - 1 / self.params.engine.slots)
        sampled, tokens, squares, sequential = np.mean(found, 0).tolist()
        return Decoded(sampled, tokens, squares, sequential, float(longest)), rows

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

    def _decoding(self, decoded: Decoded, batches: float, rollouts: float) -> Cost:
        """Of `batches`, one after the other, of so many rollouts at the same time."""
        model, total = self.model, batches * rollouts
        steps = batches * max(rollouts * decoded.sampled / self.params.engine.slots, decoded.sequential)
        # The cache is dense: a step reads each slot's as far as its longest thread goes.
        cache = total * decoded.sampled * decoded.longest * model.cached
        return Cost(tokens=total * decoded.sampled, read=NUMBER * (steps * model.sizes.weights + cache),
                    decoded=model.sizes.forward(total * decoded.tokens, total * decoded.squares))


def parquet_bytes(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, count: int) -> float:
    """Bytes of a file of `count` rows like `rows`: any others add what the second half of them adds."""

    def size(part: Sequence[Mapping[str, Any]]) -> int:
        file = BytesIO()
        pq.write_table(pa.Table.from_pylist(part, schema=schema), file, compression="zstd")
        return file.tell()

    half = len(rows) // 2
    whole = size(rows)
    return whole + (whole - size(rows[:half])) / (len(rows) - half) * (count - len(rows))


def stage_of(job: str) -> str:
    return job.split("/")[0]


def work(stage: str, cost: Cost) -> tuple[float, ...]:
    """What a job's seconds are a sum of, each at a rate of its stage."""
    by_stage = {"sft": (cost.trained,), "evaluate": (cost.decoded, cost.units),
                "latency": (cost.decoded,), "traces": (cost.tokens, 1.0)}
    return by_stage.get(stage, (cost.units,))


class Rates:
    """Seconds of jobs on the machine of a recorded run (`results/run.json`), whose jobs had the costs `ran`.

    SFT and latencies take FLOPs, evaluations FLOPs and rollouts, traces tokens and a start, others units; the
    rates of a stage are fitted to its jobs of that run. RL has no rates of its own: it trains at those of
    SFT and decodes at those of evaluations.
    """

    def __init__(self, run: Mapping[str, Any], ran: Mapping[str, Cost]):
        jobs = run["jobs"].items()
        timed = {name: job["seconds"] for name, job in jobs if name in ran and "seconds" in job}
        self.of_stage: dict[str, np.ndarray] = {}
        for stage in {stage_of(name) for name in timed} - {"rl"}:
            jobs = [name for name in timed if stage_of(name) == stage]
            relative = np.array([np.array(work(stage, ran[name])) / timed[name] for name in jobs])
            scale = relative.max(0)
            self.of_stage[stage] = nnls(relative / scale, np.ones(len(jobs)))[0] / scale

    def seconds(self, job: str, cost: Cost) -> float | None:
        """None for a job of a stage that the run did not time."""
        stages = ("sft", "evaluate") if stage_of(job) == "rl" else (stage_of(job),)
        if not self.of_stage.keys() >= set(stages):
            return None
        return float(sum(work(stage, cost) @ self.of_stage[stage] for stage in stages))


def report(scale: str, run: Mapping[str, Any] | None) -> Iterator[str]:
    """The lines of `apr plan`: a row for each job, their sum, and how they were estimated."""
    estimate = Estimate(load_scale(scale))
    costs, here = estimate.costs, dict[str, float | None]()
    if run is not None:
        rates = Rates(run, costs if run["scale"] == scale else Estimate(load_scale(run["scale"])).costs)
        here = {name: rates.seconds(name, cost) for name, cost in costs.items()}
    titles = ["job", "tokens", "FLOPs", "disk", "until done", *(f"{name} h" for name in DEVICES)]
    rows = [[*titles, "here h"] if here else titles]
    for name, cost in costs.items():
        hours = [cost.hours(device) for device in DEVICES.values()]
        rows.append([name, *map(short, [cost.tokens, cost.flops, cost.kept, cost.until, *hours])])
        rows[-1] += [short((here[name] or 0) / 3600)] if here else []
    every = list(costs.values())
    rows.append(["all", "-", short(sum(c.flops for c in every)), short(sum(c.kept for c in every)),
                 short(max(c.until for c in every)),
                 *(short(sum(c.hours(device) for c in every)) for device in DEVICES.values())])
    rows[-1] += [short(sum(seconds or 0 for seconds in here.values()) / 3600)] if here else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
    yield from notes(estimate, run)


def short(value: float | None) -> str:
    """Three digits and a prefix: 1.23 G; nothing for nothing."""
    if not value:
        return "-"
    value = float(f"{value:.3g}")
    power = max(0, min(int(math.log10(value) // 3), len(PREFIXES) - 1))
    return f"{value / 1000**power:.3g}{PREFIXES[power]}"


def notes(estimate: Estimate, run: Mapping[str, Any] | None) -> Iterator[str]:
    """What was estimated how."""
    params, model, sft = estimate.params, estimate.model, estimate.params.sft
    slots, window = params.engine.slots, params.grammar.window
    yield ""
    yield (f"model: {model.parameters:,} parameters, {model.sizes.weights:,} in matrices; its KV cache takes "
           f"{short(NUMBER * model.cached * slots * window)}B for {slots} slots of {window} tokens")
    for method, seen in estimate.trained_on.items():
        tokens = sft.tokens[method]
        yield (f"sft/{method}: {short(tokens / seen.mean)} sequences of {seen.mean:.0f} tokens, "
               f"{tokens / seen.mean / seen.threads:.3g} epochs, "
               f"{tokens / sft.row_tokens / sft.rows_per_step:,.0f} steps")
    yield (f"tokens: written, trained on or sampled; from solvers run on {len(estimate.problems['train'])} "
           f"training problems, and for {ROLLOUTS} rollouts of a job: models decode as solvers, after RL too")
    yield "FLOPs: of training 6 N T + 6 L d sum(length^2), of decoding a third; every group of RL has signal"
    yield "disk: Parquet and weights; until done: besides, trainer states (all: of the largest job)"
    peaks = "; ".join(f"{name} {device.flops['bfloat16'] / 1e12:g} TFLOP/s in bfloat16, "
                      f"{device.flops['float32'] / 1e12:g} in float32, {device.bandwidth / 1e12:g} TB/s"
                      for name, device in DEVICES.items())
    yield f"{', '.join(DEVICES)}: {UTILISATION:.0%}, assumed and not measured, of the peaks {peaks};"
    yield f"  SFT in {sft.precision}, RL and decoding in float32; decoding bound by FLOP/s or by bandwidth"
    if run is not None:
        machine = run["machine"]
        yield (f"here: one job after the other at the rates of a run of scale {run['scale']!r} on "
               f"{machine['cores']} cores ({machine['processor']}); RL at the rates of SFT and evaluations")
