"""What figures and claims are made of: cells of the evaluation, latencies, and a record of what they lack."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv

from apr.core.errors import DataError
from apr.core.files import read_json
from apr.core.params import Params
from apr.evaluation.points import ModelId, evaluated, teachers
from apr.evaluation.results import Cell, Key, read_cells, schema_of
from apr.evaluation.statistics import interval

Row = dict[str, Any]
"""A row of a figure's CSV; the figure is drawn from these rows alone."""


@dataclass
class Evidence:
    params: Params
    cells: Mapping[Key, Cell]
    latencies: Mapping[Key, Mapping[str, Any]]
    """What `measure_latency` wrote of each greedy cell that it timed, and of its model's `costs`."""
    missing: list[Key | str] = field(default_factory=list)
    """What was asked for and not found."""
    training: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """The log of each policy's RL, a row per step."""

    @property
    def bootstrap(self) -> tuple[int, int]:
        """Number of resamples, and their seed."""
        return self.params.eval.bootstrap, self.params.seed

    def fresh(self) -> "Evidence":
        """Returns the same, with nothing missing yet."""
        return replace(self, missing=[])

    def lacks(self) -> str:
        """Returns what is missing, in words."""
        found: dict[str, list[str]] = {}
        for item in self.missing:
            if isinstance(item, str):
                found[item] = []
            else:
                condition = "unconditioned" if item.condition is None else f"{item.condition}"
                found.setdefault(f"{item._replace(condition=None)}: ", []).append(condition)
        return "; ".join(job + ", ".join(dict.fromkeys(conditions)) for job, conditions in found.items())

    def cell(self, key: Key) -> Cell | None:
        """Returns the cell, or None and a note."""
        if key not in self.cells:
            self.missing.append(key)
        return self.cells.get(key)

    def latency(self, key: Key, field: str = "problems") -> Any:
        """Returns a field of what was timed of a cell, or None and a note."""
        found = self.latencies.get(key, {}).get(field)
        if not found:
            self.missing.append(f"latency of {key}" if field == "problems" else f"{field} latency of {key}")
        return found

    def conditions(self, model: str, stage: str, temperature: float, join: str = "all") -> list[int | None]:
        """Returns the conditions that were swept, unconditioned first."""
        job = (model, stage, temperature)
        found = [key.condition for key in self.cells if key[:3] == job and key.join == join]
        if not found:
            self.missing.append(Key(model, stage, temperature, join=join))
        return sorted(found, key=lambda condition: -1 if condition is None else condition)

    def spread(self, **values: np.ndarray) -> Row:
        """Returns columns `name`, `name_low`, `name_high` of each: mean over problems and 95 % interval."""
        found: Row = {}
        for name, by_problem in values.items():
            found |= zip((name, f"{name}_low", f"{name}_high"), interval(by_problem, *self.bootstrap),
                         strict=True)
        return found

    def measured(self, **values: np.ndarray) -> Row:
        """Returns the same after a column `problems`, their number."""
        return {"problems": len(next(iter(values.values())))} | self.spread(**values)


def accuracy(cell: Cell) -> np.ndarray:
    """Returns (problems,): the share of a problem's samples that the strict verifier accepts."""
    return cell.strict.mean(axis=1)


def mean(cell: Cell, column: str) -> np.ndarray:
    """Returns (problems,): the mean over samples of a column of the ledger."""
    return getattr(cell, column).mean(axis=1)


def csv_text(rows: Sequence[Row]) -> str:
    """Returns the rows as CSV: floats with six digits, None as an empty field."""
    text = StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def read_csv(path: Path) -> list[Row]:
    """Returns the rows of a CSV: numbers as numbers, empty fields as None. Raises `DataError` without it."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    empty = pyarrow.csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
    return pyarrow.csv.read_csv(path, convert_options=empty).to_pylist()


def read_evidence(
    params: Params, evaluations: Path, latencies: Path, solvers: Path | None = None, *,
    models: Iterable[ModelId] | None = None, training: Path | None = None, partial: bool = False,
) -> Evidence:
    """Returns the files of every job that the sweeps name, or of some `models`; a latency that was not
    measured is left out, and if `partial` a file that was not made.

    With `solvers` also what each teacher did, under stage "solver"; with `training`, the folder of models,
    the logs of RL.
    Raises `DataError` if an evaluation is missing, unless `partial`, or broken.
    """
    paths = [evaluations / f"{model}.parquet" for model in (evaluated(params) if models is None else models)]
    taught = [solvers / f"{method}.parquet" for method in teachers(params) if solvers]
    if partial:
        paths, taught = ([path for path in each if path.is_file()] for each in (paths, taught))
    cells = read_cells(paths, schema_of(params)) | read_cells(taught)
    measured = read_json(latencies)["models"] if latencies.is_file() else {}
    timed: dict[Key, Mapping[str, Any]] = {}
    for model in evaluated(params):
        its = measured.get(str(model), {})
        entries = [entry | {"costs": its.get("costs")} for entry in its.get("conditions", ())]
        timed |= by_key(model.name, model.phase, entries)
    logs = {policy: training / "rl" / policy / "log.jsonl" for policy in params.rl.policies if training}
    return Evidence(params, cells, timed, training={
        policy: [json.loads(line) for line in path.read_text().splitlines()]
        for policy, path in logs.items() if path.is_file()
    })  # fmt: skip


def by_key(model: str, stage: str, entries: Sequence[Mapping[str, Any]]) -> dict[Key, Mapping[str, Any]]:
    """Returns what was timed of a model by the cell that each entry is of."""
    return {Key(model, stage, 0.0, entry["condition"], entry["join"]): entry for entry in entries}


def pool(runs: Sequence[Evidence]) -> Evidence:
    """Returns runs of one set of parameters but for the seed as one: each problem of each run counts once.

    A cell or a latency is kept if every run has it; latencies lose their percentiles.
    Raises `DataError` if parameters differ or seeds do not.
    """
    first, seeds = runs[0], [run.params.seed for run in runs]
    if len(runs) == 1:
        return first
    if len(set(seeds)) < len(seeds):
        raise DataError(f"runs to pool have the seeds {seeds}; allowed: different ones")
    if any(run.params.model_copy(update={"seed": seeds[0]}) != first.params for run in runs):
        raise DataError("runs to pool differ in more parameters than the seed")
    cells = {key: _pooled({run.params.seed: run.cells[key] for run in runs})
             for key in first.cells if all(key in run.cells for run in runs)}  # fmt: skip
    latencies = {key: {"problems": [row for run in runs for row in run.latencies[key]["problems"]]}
                 for key in first.latencies if all(key in run.latencies for run in runs)}  # fmt: skip
    return replace(first, cells=cells, latencies=latencies)


def _pooled(cells: Mapping[int, Cell]) -> Cell:
    """By seed; samples beyond those that all have are dropped."""
    samples = min(cell.samples for cell in cells.values())
    problems = tuple(f"{seed}/{name}" for seed, cell in cells.items() for name in cell.problems)
    columns = {name: np.concatenate([cell.columns[name][:, :samples] for cell in cells.values()])
               for name in next(iter(cells.values())).columns}
    return Cell(problems, columns)
