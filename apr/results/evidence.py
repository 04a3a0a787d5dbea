"""What figures are made of: cells of the evaluation, latencies, and a record of what they lack."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from apr.core.errors import DataError
from apr.core.files import read_json
from apr.core.params import Params
from apr.evaluation.points import jobs, teachers
from apr.evaluation.results import Cell, Key, read_cells
from apr.evaluation.statistics import Interval, interval, paired_difference

Row = dict[str, Any]
"""A row of a figure's CSV; the figure is drawn from these rows alone."""


@dataclass
class Evidence:
    params: Params
    cells: Mapping[Key, Cell]
    latencies: Mapping[tuple[str, str], dict[str, Any]]
    """What `measure_latency` wrote, by (stage, model)."""
    missing: list[Key | str] = field(default_factory=list)
    """What was asked for and not found."""

    def fresh(self) -> "Evidence":
        """The same, with nothing missing yet."""
        return replace(self, missing=[])

    def lacks(self) -> str:
        """What is missing, in words."""
        found: dict[str, list[str]] = {}
        for item in self.missing:
            if isinstance(item, str):
                found[item] = []
            else:
                condition = "unconditioned" if item.condition is None else f"{item.condition}"
                found.setdefault(f"{item._replace(condition=None)}: ", []).append(condition)
        return "; ".join(job + ", ".join(dict.fromkeys(conditions)) for job, conditions in found.items())

    def cell(self, key: Key) -> Cell | None:
        """The cell, or None and a note."""
        if key not in self.cells:
            self.missing.append(key)
        return self.cells.get(key)

    def conditions(self, model: str, stage: str, temperature: float, join: str = "all") -> list[int | None]:
        """The conditions that were swept, unconditioned first."""
        job = (model, stage, temperature)
        found = [key.condition for key in self.cells if key[:3] == job and key.join == join]
        if not found:
            self.missing.append(Key(model, stage, temperature, join=join))
        return sorted(found, key=lambda condition: -1 if condition is None else condition)

    def spread(self, name: str, values: np.ndarray) -> Row:
        """Columns `name`, `name_low`, `name_high`: mean over problems and 95 % interval."""
        return named(name, interval(values, self.params.eval.bootstrap, self.params.seed))

    def change(self, name: str, after: np.ndarray, before: np.ndarray) -> Row:
        """The same of a paired difference."""
        return named(name, paired_difference(after, before, self.params.eval.bootstrap, self.params.seed))

    def latency(self, model: str, stage: str, condition: int | None, join: str = "all") -> Row:
        """Columns `latency` (seconds per problem, with interval), `latency_p50`, `latency_p95`; or blanks."""
        measured = self.latencies.get((stage, model), {"conditions": []})["conditions"]
        for entry in measured:
            if (entry["condition"], entry["join"]) == (condition, join):
                seconds = np.array([row["seconds"] for row in entry["problems"]])
                tails = {f"latency_{p}": entry[p]["seconds"] for p in ("p50", "p95")}
                return self.spread("latency", seconds) | tails
        self.missing.append(f"latency of {stage}/{model}" + (f" condition {condition}" if condition else ""))
        return dict.fromkeys(("latency", "latency_low", "latency_high", "latency_p50", "latency_p95"))

    def modelled(self, model: str, stage: str, condition: int | None, join: str) -> dict[int, float]:
        """Modelled seconds per problem by the number of devices; empty, and a note, where there are none."""
        for entry in self.latencies.get((stage, model), {"conditions": []})["conditions"]:
            if (entry["condition"], entry["join"]) == (condition, join) and entry["modelled"]:
                return {int(devices): seconds for devices, seconds in entry["modelled"].items()}
        self.missing.append(f"modelled latency of {stage}/{model} condition {condition} join {join}")
        return {}


def csv_text(rows: Sequence[Row]) -> str:
    """Floats with six digits, None as an empty field."""
    text = StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def named(name: str, found: Interval) -> Row:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def accuracy(cell: Cell) -> np.ndarray:
    """(problems,): share of a problem's samples that the strict verifier accepts."""
    return cell.strict.mean(axis=1)


def mean(cell: Cell, column: str) -> np.ndarray:
    """(problems,): mean over samples of a column of the ledger."""
    return getattr(cell, column).mean(axis=1)


def read_evidence(
    params: Params, evaluations: Path, latencies: Path, solvers: Path | None = None
) -> Evidence:
    """The files of every job that the sweeps name; a latency that was not measured is left out.

    With `solvers` also what each teacher did, under stage "solver".

    Raises `DataError` if an evaluation is missing or broken.
    """
    named_jobs = jobs(params)
    paths = [evaluations / stage / f"{model}.parquet" for stage, model in named_jobs]
    paths += [solvers / f"{method}.parquet" for method in teachers(params) if solvers]
    cells = read_cells(paths)
    timed = {job: latencies / job[0] / f"{job[1]}.json" for job in named_jobs}
    return Evidence(params, cells, {job: read_json(path) for job, path in timed.items() if path.is_file()})


def pool(runs: Sequence[Evidence]) -> Evidence:
    """Runs of one set of parameters but for the seed as one: each problem of each run counts once.

    A cell or a latency is kept if every run has it. Raises `DataError` if parameters differ or seeds do not.
    """
    if len(runs) == 1:
        return runs[0]
    seeds = [run.params.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise DataError(f"runs to pool have the seeds {seeds}; allowed: different ones")
    if any(run.params.model_copy(update={"seed": seeds[0]}) != runs[0].params for run in runs):
        raise DataError("runs to pool differ in more parameters than the seed")
    cells = {key: _pooled_cell({run.params.seed: run.cells[key] for run in runs})
             for key in runs[0].cells if all(key in run.cells for run in runs)}
    latencies = {job: _pooled_latency([run.latencies[job] for run in runs])
                 for job in runs[0].latencies if all(job in run.latencies for run in runs)}
    return replace(runs[0], cells=cells, latencies=latencies)


def _pooled_cell(cells: Mapping[int, Cell]) -> Cell:
    """By seed; samples beyond those that all have are dropped."""
    samples = min(cell.samples for cell in cells.values())
    problems = tuple(f"{seed}/{name}" for seed, cell in cells.items() for name in cell.problems)
    columns = {name: np.concatenate([cell.columns[name][:, :samples] for cell in cells.values()])
               for name in next(iter(cells.values())).columns}
    return Cell(problems, columns)


def _pooled_latency(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The problems of each condition, without percentiles."""
    problems: dict[tuple[int | None, str], list[dict[str, Any]]] = {}
    for run in measured:
        for entry in run["conditions"]:
            problems.setdefault((entry["condition"], entry["join"]), []).extend(entry["problems"])
    return {"conditions": [{"condition": condition, "join": join, "problems": rows}
                           for (condition, join), rows in problems.items()]}
