"""Evaluation files by rows, and by cells: all samples of one model, stage, condition and temperature."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from apr.core.errors import DataError
from apr.core.files import read_rows
from apr.core.params import DEVICES, Params
from apr.evaluation.statistics import vote_labels
from apr.rollouts.replay import in_steps, parts_of, replay
from apr.rollouts.rollout import Rollout, Status

LEDGER = ("prompt", "sampled", "injected", "total", "sequential", "longest", "children", "depth",
          "malformed_threads", "truncated_threads", "threads")  # fmt: skip
"""Tokens by origin; total and sequential tokens (PAPER, definitions); tokens of the longest thread, prompt
included; child threads; deepest thread; threads that broke the rules, and that ran out of window or tokens
(those that never started for want of tokens included); all threads."""

EVAL_SCHEMA = pa.schema({
    "model": pa.string(), "stage": pa.string(), "problem_id": pa.string(), "condition_kind": pa.string(),
    "condition_amount": pa.int32(), "temperature": pa.float64(), "sample": pa.int32(), "join": pa.string(),
    "status": pa.string(), "answer": pa.string(), "expression": pa.string(), "strict": pa.bool_(),
    "lenient": pa.bool_(), "reason": pa.string(), **{name: pa.int32() for name in LEDGER},
})  # fmt: skip
"""The point (`apr.evaluation.points`), the `Judgement` and the ledger of a rollout."""
STEPS = {f"steps_{devices}": devices for devices in DEVICES}
"""Columns of scales with `grammar.devices`: steps of one thread, replayed on so many."""


def schema_of(params: Params) -> pa.Schema:
    """Returns the columns of a model's evaluation: `EVAL_SCHEMA`, and `STEPS` if a scale has them."""
    more = [(name, pa.float64()) for name in STEPS if params.grammar.devices]
    return pa.schema([*EVAL_SCHEMA, *more])


def replayed(params: Params, rollout: Rollout) -> dict[str, float]:
    """Returns the columns of `STEPS`, if a scale has them."""
    if not params.grammar.devices:
        return {}
    parts, costs = parts_of(rollout), in_steps(params.engine.token_cost)
    return {name: replay(parts, costs, devices) for name, devices in STEPS.items()}


def ledger(rollout: Rollout) -> dict[str, int]:
    """Returns the columns of `LEDGER`."""
    usage, statuses = rollout.usage, Counter(thread.status for thread in rollout.threads)
    return usage._asdict() | {
        "total": usage.total, "malformed_threads": statuses[Status.MALFORMED],
        "truncated_threads": statuses[Status.TRUNCATED] + statuses[Status.CANCELLED],
        "threads": len(rollout.threads),
    }  # fmt: skip


class Key(NamedTuple):
    """Names a cell; `condition` None is unconditioned."""

    model: str
    stage: str
    temperature: float
    condition: int | None = None
    join: str = "all"

    def __str__(self) -> str:
        condition = "" if self.condition is None else f" condition {self.condition}"
        join = "" if self.join == "all" else f" join {self.join}"
        return f"{self.stage}/{self.model}{condition} T={self.temperature:g}{join}"


TIMED = ("prefill_seconds", "decode_seconds", "seconds", "cpu_seconds")
"""Forward passes that read prompts and joined messages; passes that decode; the whole rollout; what it took
of this process's CPU time, by all threads, which a busy machine changes least."""
KEY_COLUMNS = ("model", "stage", "temperature", "condition_amount", "join")


@dataclass(frozen=True)
class Cell:
    """`strict`, `lenient`, every column of the ledger, and of `STEPS` if there are any, each (problems,
    samples); `votes` are labels of equal answers (`vote_labels`)."""

    problems: tuple[str, ...]
    columns: dict[str, np.ndarray]

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__["columns"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def samples(self) -> int:
        return self.strict.shape[1]


def read_cells(paths: Iterable[Path], schema: pa.Schema = EVAL_SCHEMA) -> dict[Key, Cell]:
    """The cells of some evaluation files. Raises `DataError` if a file is unreadable or has gaps."""
    cells: dict[Key, Cell] = {}
    for path in paths:
        groups: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        for row in read_rows(path, schema):
            groups[Key(*(row[name] for name in KEY_COLUMNS))].append(row)
        for key, rows in groups.items():
            cells[key] = _cell(path, key, rows)
    return cells


def _cell(path: Path, key: Key, rows: list[dict[str, Any]]) -> Cell:
    rows = sorted(rows, key=lambda row: (row["problem_id"], row["sample"]))
    problems = tuple(sorted({row["problem_id"] for row in rows}))
    samples = max(row["sample"] for row in rows) + 1
    expected = [(problem, sample) for problem in problems for sample in range(samples)]
    if [(row["problem_id"], row["sample"]) for row in rows] != expected:
        raise DataError(f"{path}: {key}: rows are missing or double ({len(rows)} rows for {len(problems)} "
                        f"problems x {samples} samples)")
    shape = (len(problems), samples)
    columns = {name: np.array([row[name] for row in rows]).reshape(shape)
               for name in ("strict", "lenient", *LEDGER, *STEPS) if name in rows[0]}
    answers = [row["expression"] for row in rows]
    columns["votes"] = vote_labels([answers[i : i + samples] for i in range(0, len(answers), samples)])
    return Cell(problems, columns)


def percentiles(measured: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile over problems of each of `TIMED`, in seconds."""
    return {f"p{rank}": {name: float(np.percentile([row[name] for row in measured], rank)) for name in TIMED}
            for rank in (50, 95)}
