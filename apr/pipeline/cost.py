"""What the jobs of a scale cost, from its parameters alone: tokens, FLOPs, bytes, and hours of some devices.

No data is read. The first problems of each split are drawn again and the solvers run on them: their traces
are those that the jobs will write. `apr.pipeline.decoded` says what models decode, `apr.engine.flops` what
passes cost, and `apr.pipeline.rates` how many seconds that takes where a run was recorded.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apr.core.errors import ParamsError
from apr.core.params import Params
from apr.engine.flops import Device, Sizes
from apr.evaluation.points import Point, points
from apr.evaluation.results import EVAL_SCHEMA
from apr.evaluation.teacher import teacher_points
from apr.language import build_language
from apr.pipeline.decoded import Decoded, Decoder, Habits, Rows
from apr.pipeline.plan import nodes
from apr.tasks.countdown.generate import SPLITS, generate_problems
from apr.tasks.countdown.problem import PROBLEM_SCHEMA, Problem
from apr.training.traces import CHUNK, chunk_table

UTILISATION = 0.4
"""Share of a peak that is reached, of FLOP/s as of bandwidth: assumed, not measured."""

TRACED = 4 * CHUNK
"""Training problems that are traced, at most."""
NUMBER = 4
"""Bytes of a weight, moment, key or value: all are float32."""
SFT_STATES, RL_STATES = 3, 2
"""Trainer states on disk at most: a new one is written before the oldest of those kept is removed."""


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
    from apr.training.sft.muon import ITERATIONS

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
    `units`: rollouts, tokens one after the other of a latency, or what a job without a model does."""

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
        self.decoder = Decoder(params, self.language)
        self.trained_on: dict[str, TrainedOn] = {}
        """By method; its traces come before its SFT."""
        self.costs: dict[str, Cost] = {}
        self.adopt({})

    def adopt(self, habits: Habits) -> None:
        """Estimates anew, of models that decode so much of what their solvers write."""
        self.decoder.habits = habits
        for name in nodes(self.params):
            stage, *which = name.split("/")
            if name in self.costs and stage in ("problems", "traces", "sft"):
                continue  # nothing is decoded
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
        decoded, _ = self.decoder.decode(("sft", "rl"), settings.method, at, self.problems["train"])
        steps, rollouts = settings.steps or rl.steps, rl.prompts * rl.group
        # The policy forward and backward in each update, the reference forward once. Groups without signal
        # are not scored, but how many there are depends on what is learnt: all are counted.
        passes = rl.inner_updates * (2 if rl.lora else 3) + (settings.kl > 0)
        forward = model.sizes.forward(steps * rollouts * decoded.tokens, steps * rollouts * decoded.squares)
        return self._decoding(decoded, steps, rollouts)._replace(
            trained=passes * forward, units=steps * rollouts,
            kept=NUMBER * model.parameters,
            until=RL_STATES * (3 if rl.optimizer == "adamw" else 1) * NUMBER * model.parameters,
        )  # fmt: skip

    def _evaluate(self, stage: str, model: str) -> Cost:
        at = points(self.params, model, stage)
        count = self.params.eval.problems
        decoded, rows = self._decode(stage, model, at, count)
        cost = self._decoding(decoded, 1, count * len(at))
        kept = parquet_bytes(rows, EVAL_SCHEMA, count * len(at))
        return cost._replace(kept=kept, units=count * len(at))

    def _latency(self, stage: str, model: str) -> Cost:
        greedy = [point for point in points(self.params, model, stage) if point.temperature == 0]
        count = self.params.eval.latency_problems
        at = greedy or [Point(None, 0.0, 0)]
        decoded, _ = self._decode(stage, model, at, count)
        cost = self._decoding(decoded, count * len(at), 1)
        return cost._replace(units=count * len(at) * decoded.sequential)

    def _teacher(self, method: str) -> Cost:
        at, count = teacher_points(self.params, method), self.params.eval.problems
        decoded, rows = self._decode("solver", method, at, count)
        kept = parquet_bytes(rows, EVAL_SCHEMA, count * len(at))
        return Cost(tokens=count * len(at) * decoded.sampled, kept=kept)

    def _results(self) -> Cost:
        """Figures, claims, checks: they read every rollout."""
        return Cost(units=sum(cost.units for name, cost in self.costs.items() if name.startswith("evaluate")))

    def _decode(self, stage: str, model: str, at: list[Point], count: int) -> tuple[Decoded, Rows]:
        method = model if stage in ("sft", "solver") else self.params.rl.policies[model].method
        return self.decoder.decode([stage], method, at, self.problems["test"][:count])

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
