"""What the jobs of a scale cost, from its parameters alone: tokens, FLOPs, bytes, and hours of some devices.

No data is read. Problems are drawn again and the solvers run on the first of them; a model is taken to decode
what its solver writes. Hours here follow from one rate a stage: that of a recorded run, or one that is given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch

from apr.core.errors import DataError, ParamsError
from apr.core.files import read_json
from apr.core.params import Mixture, Params
from apr.engine.flops import DEVICES, Device, sizes_of
from apr.evaluation.points import ModelId, Phase, Point, greedy_points, points, timed
from apr.evaluation.teacher import as_rollout, draw, teacher_points
from apr.pipeline.plan import load_scale
from apr.pipeline.stages import jobs
from apr.tasks import open_task
from apr.tasks.problems import generate_problems
from apr.training.checkpoint import new_model
from apr.training.traces import CHUNK, chunk_table

TRACED, DECODED = 1000, 50
"""Problems that solvers run on: for traces, and for each condition of a model or a teacher."""
UTILISATION = 0.4
"""Share of a peak that is reached, of FLOP/s as of bandwidth: assumed, not measured."""
NUMBER, ROLLOUT = 4, 10
"""Bytes of a weight, key or value (all are float32), and on disk of a row of an evaluation (measured)."""


class Cost(NamedTuple):
    """Of one job. `work`: what its seconds are proportional to within a stage; `tokens`: written, trained on
    or sampled; FLOPs: `trained` in `precision`, `decoded` in float32; bytes: `read` from weights and cache by
    decoding, kept on `disk`."""

    work: float = 1
    tokens: float = 0
    trained: float = 0
    decoded: float = 0
    read: float = 0
    disk: float = 0
    precision: str = "float32"

    def hours(self, device: Device) -> float:
        """At `UTILISATION`: training is bound by FLOP/s, decoding by FLOP/s or by bandwidth."""
        decoding = max(self.decoded / device.flops["float32"], self.read / device.bandwidth)
        return (self.trained / device.flops[self.precision] + decoding) / UTILISATION / 3600


class Estimate:
    """`costs` of every job of `params`, by its id. Raises `ParamsError` if training starts from another
    model, whose size the parameters do not say, or if no trace of a method fits the window."""

    def __init__(self, params: Params):
        if params.sft.base is not None:
            raise ParamsError(f"sft.base: {params.sft.base!r} is not allowed; allowed: null, as the "
                              "parameters do not say the size of another model")
        self.params, self.task = params, open_task(params)
        with torch.device("meta"):
            size, window = self.task.language.vocabulary.size, params.grammar.window
            model = new_model(params.model, size, 0, window, seed=0)
        self.sizes, self.parameters = sizes_of(model), model.num_parameters()
        few = {"train": min(params.problems.train, TRACED)}
        self.problems = generate_problems(open_task(params.model_copy(update={
            "problems": params.problems.model_copy(update=few)
        })))  # fmt: skip
        self.threads: dict[str, tuple[float, float]] = {}
        """Mean tokens of the threads that SFT sees, and their squares' sum over their sum, by method."""
        self._written = cache(self._write)
        self.costs: dict[str, Cost] = {}
        for name in jobs(params):
            stage, *which = name.split("/")
            cost: Callable[..., Cost] = getattr(self, f"_{stage}", Cost)
            self.costs[name] = cost(*which)

    def _problems(self) -> Cost:
        return Cost(work=self.params.problems.train)

    def _traces(self, method: str) -> Cost:
        table = chunk_table(self.task, self.problems["train"], method)
        if not len(table):
            raise ParamsError(f"grammar.window: {self.params.grammar.window} is not allowed; allowed: more, "
                              f"as no trace of {method} fits")
        lengths = table["length"].to_numpy().astype(float)
        wanted = (table["thread"].to_numpy() == 0) | table["solved"].to_numpy()
        seen = np.where(wanted, 1.0, self.params.sft.child_share)
        self.threads[method] = seen @ lengths / seen.sum(), seen @ lengths**2 / (seen @ lengths)
        count, few = self.params.traces.problems, len(self.problems["train"])
        pq.write_table(table, file := BytesIO(), ceil(len(table) * CHUNK / few), compression="zstd")
        return Cost(work=count, tokens=lengths.sum() * count / few, disk=file.tell() * count / few)

    def _sft(self, method: str) -> Cost:
        tokens = self.params.sft.tokens[method]
        flops = 3 * self.sizes.forward(tokens, tokens * self.threads[method][1])
        precision = {"auto": "bfloat16"}.get(self.params.sft.precision, self.params.sft.precision)  # on a GPU
        return Cost(flops, tokens, flops, disk=NUMBER * self.parameters, precision=precision)

    def _write(self, method: str, condition: int | None) -> np.ndarray:
        """Of rollouts that the solver writes under a condition, means: sampled tokens, all tokens, the sum of
        the threads' squared lengths, and sampled tokens that depend on each other."""
        window, traces = self.params.grammar.window, self.params.traces
        if isinstance(mixture := traces.methods[method], Mixture):
            kind = None if condition is None else self.params.condition_kind(method, condition)
            able = {part: mixture.shares[part] for part, its in traces.parts(method).items()
                    if kind in (None, its.counts)}  # fmt: skip
            means = [self._written(part, condition) for part in able]
            return np.average(means, 0, weights=[*able.values()])
        serial = not mixture.spawns
        point, cut = Point(condition, 0.0, 0), window
        if serial and condition:  # a budget only cuts
            point, cut = Point(None, 0.0, 0), min(window, condition)
        found = []
        for problem in self.problems["test"][:DECODED]:
            rollout = as_rollout(self.task, problem, draw(self.task, problem, point, method))
            lengths = np.array([len(thread.ids[:cut]) for thread in rollout.threads])
            sampled = sum(sum(thread.sampled[:cut]) for thread in rollout.threads)
            sequential = min(sampled, rollout.usage.sequential)
            found.append((sampled, lengths.sum(), (lengths**2).sum(), sequential))
        return np.mean(found, 0)

    def _decode(self, method: str, at: list[Point], rollouts: int, batches: int = 1) -> Cost:
        """Of `batches` one after the other, each of so many `rollouts` at once at every point; its work is
        tokens one after the other."""
        model, written = self.params.model, np.sum([self._written(method, p.condition) for p in at], 0)
        sampled, tokens, squares, sequential = map(float, written * rollouts * batches)
        token = 2 * NUMBER * model.layers * model.hidden // model.heads * model.kv_heads  # in the KV cache
        steps = max(sampled / self.params.engine.slots, sequential / rollouts)
        return Cost(sequential, sampled, decoded=self.sizes.forward(tokens, squares),
                    read=NUMBER * self.sizes.weights * steps + token * squares / 2)

    def _rl(self, policy: str) -> Cost:
        rl, settings = self.params.rl, self.params.rl.policies[policy]
        at, steps = [Point(settings.amount, rl.temperature, 0)], settings.steps or rl.steps
        cost = self._decode(settings.method, at, rl.prompts * rl.group, steps)
        # The policy forward and backward in each update, the reference forward once; of every group, as if
        # each had a signal.
        trained = cost.decoded * (rl.inner_updates * (2 if rl.lora else 3) + (settings.kl > 0))
        return cost._replace(work=cost.decoded + trained, trained=trained, disk=NUMBER * self.parameters)

    def _evaluate(self, stage: Phase, model: str) -> Cost:
        its, count = ModelId(stage, model), self.params.eval.problems
        at = points(self.params, its)
        cost = self._decode(its.method(self.params), self._known(its, at), count)
        return cost._replace(work=cost.decoded, disk=ROLLOUT * count * len(at))

    def _latency(self) -> Cost:
        params = self.params
        count = params.eval.latency_problems
        asked = {model: self._known(model, greedy_points(params, model)) for model in timed(params)}
        costs = [self._decode(model.method(params), at, 1, count) for model, at in asked.items()]
        return Cost(*np.sum([Cost(0)[:-1], *(cost[:-1] for cost in costs)], 0))

    def _teacher(self, method: str) -> Cost:
        at, count = teacher_points(self.params, method), self.params.eval.problems
        tokens = self._decode(method, at, count).tokens
        return Cost(tokens, tokens, disk=ROLLOUT * count * len(at))

    def _known(self, model: ModelId, at: list[Point]) -> list[Point]:
        """Returns the points as the solver knows them, which is asked for nothing where devices are."""
        return [point if model.condition_kind(self.params, point.condition or 0) != "devices"
                else point._replace(condition=None) for point in at]  # fmt: skip


def rates_of(run: Mapping[str, Any], costs: Mapping[str, Cost]) -> dict[str, float]:
    """What each stage of a recorded run (`results/run.json`) did a second, whose jobs had these costs."""
    sums: dict[str, np.ndarray] = {}
    for name, job in run["jobs"].items():
        if name in costs and job.get("seconds"):
            stage = name.split("/")[0]
            sums[stage] = sums.get(stage, np.zeros(2)) + (costs[name].work, job["seconds"])
    return {stage: float(work / seconds) for stage, (work, seconds) in sums.items()}


def rates_for(
    estimate: Estimate, scale: str, recorded: Path | None, given: Sequence[str]
) -> dict[str, float]:
    """The rates of the run in the file `recorded`, if there is one, and those `given` as STAGE=NUMBER.

    Raises `DataError` or `ParamsError`.
    """
    rates: dict[str, float] = {}
    if recorded:
        run = read_json(recorded)
        try:
            ran = estimate if run["scale"] == scale else Estimate(load_scale(run["scale"]))
            rates = rates_of(run, ran.costs)
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{recorded}: not a recorded run") from None
    stages = dict.fromkeys(name.split("/")[0] for name in estimate.costs)
    for text in given:
        stage, _, number = text.partition("=")
        with suppress(ValueError):
            rates[stage] = float(number)
        if stage not in stages or not 0 < rates.get(stage, 0) < np.inf or not number:
            raise ParamsError(f"--rate: {text!r} is not allowed; allowed: STAGE=NUMBER, a number above 0 of "
                              f"work a second, STAGE one of {', '.join(stages)}")
    return rates


def short(value: float) -> str:
    """Three digits and a prefix: 1.23G; nothing for nothing."""
    if not value:
        return "-"
    value = float(f"{value:.3g}")
    power = int(np.clip(np.log10(value) // 3, 0, 7))
    return f"{value / 1000**power:.3g}{' kMGTPEZ'[power].strip()}"


def report(estimate: Estimate, rates: Mapping[str, float]) -> Iterator[str]:
    """The lines of `apr plan`: a row for each job, and their sum; hours here are those at the `rates`."""
    rows = [["job", "tokens", "FLOPs", "disk", *(f"{name} h" for name in DEVICES), "here h"]]
    total = np.zeros(len(rows[0]) - 1)
    for name, cost in estimate.costs.items():
        here = cost.work / rates.get(name.split("/")[0], np.inf) / 3600
        hours = [cost.hours(device) for device in DEVICES.values()]
        values = [cost.tokens, cost.trained + cost.decoded, cost.disk, *hours, here]
        total += values
        rows.append([name, *map(short, values)])
    rows.append(["all", *map(short, total)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
    yield f"\nmodel: {estimate.parameters:,} parameters, {estimate.sizes.weights:,} in matrices"
    for method, (mean, _) in estimate.threads.items():
        count = estimate.params.sft.tokens[method] / mean
        yield f"sft/{method}: {short(count)} sequences of {mean:.0f} tokens"
    yield f"{', '.join(DEVICES)}: at {UTILISATION:.0%} of their peaks, assumed and not measured"
    known = ", ".join(f"{stage} {short(rate)}" for stage, rate in rates.items())
    yield f"here: work a second, by stage: {known or 'unknown'}"
