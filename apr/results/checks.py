"""Whether the files of a run add up, from the problems to the numbers of the figures.

What is measured is recomputed from what it was measured on: verdicts from the answers, the figures' CSVs and
the claims from the rows of the evaluations. Anything else ends the run.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr.core.errors import DataError
from apr.core.files import read_json, read_rows, write_json
from apr.core.params import Params
from apr.evaluation.points import ModelId, evaluated, greedy_points, point_columns, points, teachers, timed
from apr.evaluation.results import EVAL_SCHEMA, TIMED, percentiles
from apr.evaluation.teacher import teacher_points
from apr.language import Malformed
from apr.results.claims.table import claim_row, claims_of
from apr.results.evidence import Row, csv_text, read_evidence
from apr.results.figures.make import figures_of, metrics_of
from apr.rollouts.rollout import Status
from apr.rollouts.verdict import NO_SOLUTION
from apr.tasks import open_task
from apr.tasks.problems import SPLITS, read_problems
from apr.tasks.task import Problem, Task

SHOWN = 5
"""Faults that the error names; it counts them all."""


@dataclass
class _Findings:
    looked_at: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def look(self, kind: str, faults: Iterable[str]) -> None:
        """Counts one more thing of `kind`, and what is wrong with it."""
        self.looked_at[kind] += 1
        self.faults += faults


def check_results(params: Params, root: Path, out: Path) -> None:
    """Writes to `out` how many things of each kind were checked, if none of them is wrong.

    `root` holds `data` and `results`. Raises `DataError`: how many faults there are, and the first of them.
    """
    data, results, found = root / "data", root / "results", _Findings()
    test = _check_problems(params, data / "problems", found)[: params.eval.problems]
    for model in evaluated(params):
        at, path = points(params, model), data / "eval" / f"{model}.parquet"
        _check_rows(params, path, [(problem, point_columns(params, model, problem, point))
                                   for problem in test for point in at], found)  # fmt: skip
    for method in teachers(params):
        solver, path = ModelId("solver", method), data / "teacher" / f"{method}.parquet"
        _check_rows(params, path, [(problem, point_columns(params, solver, problem, point))
                                   for problem in test for point in teacher_points(params, method)], found)
    _check_latencies(params, data / "latency.json", test[: params.eval.latency_problems], found)
    if not found.faults:  # figures of broken rows would only repeat what is broken
        _check_numbers(params, data, results, found)
    if found.faults:
        shown = "; ".join(found.faults[:SHOWN])
        more = f"; and {len(found.faults) - SHOWN} more" if len(found.faults) > SHOWN else ""
        count = f"{len(found.faults)} fault{'s' * (len(found.faults) > 1)}"
        raise DataError(f"{count} in the results: {shown}{more}")
    write_json(out, dict(found.looked_at))


def _check_problems(params: Params, folder: Path, found: _Findings) -> list[Problem]:
    """Sizes, ids and solvability of the splits, and that they share no problem; the test problems."""
    owner: dict[str, str] = {}
    task = open_task(params)
    splits = {split: read_problems(task, folder / f"{split}.parquet") for split in SPLITS}
    for split, problems in splits.items():
        if len(problems) != getattr(params.problems, split):
            wanted = getattr(params.problems, split)
            found.faults.append(f"{split}: {len(problems)} problems instead of {wanted}")
        for problem in problems:
            other = owner.setdefault(str(problem), problem.id)
            found.look("problems", [f"{problem.id}: the same problem as {other}"] * (other != problem.id))
    return splits["test"]


def _check_rows(
    params: Params, path: Path, expected: Sequence[tuple[Problem, dict[str, Any]]], found: _Findings
) -> None:
    """An evaluation has a row for each problem and point, in their order, and each row adds up."""
    rows, task = read_rows(path, EVAL_SCHEMA), open_task(params)
    if len(rows) != len(expected):
        found.faults.append(f"{path}: {len(rows)} rows instead of {len(expected)}")
    for number, (row, (problem, columns)) in enumerate(zip(rows, expected, strict=False)):
        if differing := [name for name, value in columns.items() if row[name] != value]:
            found.faults.append(f"{path}: row {number}: {differing[0]} is {row[differing[0]]!r} instead of "
                                f"{columns[differing[0]]!r}")
            return  # every row after it would be as wrong
        faults = [*_wrong_verdict(task, row, problem), *_wrong_ledger(row, params)]
        found.look("evaluation rows", (f"{path}: row {number}: {fault}" for fault in faults))


def _wrong_verdict(task: Task, row: Row, problem: Problem) -> Iterator[str]:
    answer, judged = row["answer"], (False, False)
    if row["status"] == Status.DONE:
        if answer is None:
            yield "done without an answer"
        elif answer != NO_SOLUTION:
            verdict = task.verify(problem, task.language.vocabulary.encode(f"answer {answer} end"))
            judged = (False, False) if isinstance(verdict, Malformed) else verdict[:2]
    if (row["strict"], row["lenient"]) != judged:
        yield f"verdict {row['strict']}, {row['lenient']} of {answer!r}, which is {judged[0]}, {judged[1]}"


def _wrong_ledger(row: Row, params: Params) -> Iterator[str]:
    total, children = row["total"], row["children"]
    holds = {
        "threads = children + 1": row["threads"] == children + 1,
        "total = sampled": total == row["sampled"],
        "sequential <= total": 0 <= row["sequential"] <= total,
        "a thread alone is sequential": children > 0 or row["sequential"] == total,
        "joined tokens have children": children > 0 or row["injected"] == row["depth"] == 0,
        "children have a depth": children == 0 or 1 <= row["depth"] <= children,
        "a prompt per thread": row["prompt"] >= row["threads"],
        "longest <= prompts + sampled + joined": row["longest"] <= row["prompt"] + total + row["injected"],
        "longest <= window": row["longest"] <= params.grammar.window or row["stage"] == "solver",
        "total <= max_tokens": total <= params.engine.max_tokens or row["stage"] == "solver",
        "faulty threads <= threads": row["malformed_threads"] + row["truncated_threads"] <= row["threads"],
    }
    return (f"not so: {name}" for name, right in holds.items() if not right)


def _check_latencies(params: Params, path: Path, problems: Sequence[Problem], found: _Findings) -> None:
    measured, expected = read_json(path)["models"], {str(model): model for model in timed(params)}
    if measured.keys() != expected.keys():
        found.faults.append(f"{path}: other models than those that are timed")
        return
    for name, model in expected.items():
        wanted = [[point.condition, point.join] for point in greedy_points(params, model)]
        entries = measured[name]["conditions"]
        if [[entry["condition"], entry["join"]] for entry in entries] != wanted:
            found.faults.append(f"{path}: {name}: other conditions than the sweeps'")
        for entry in entries:
            where = f"{path}: {name} condition {entry['condition']} join {entry['join']}"
            _check_times(where, entry, problems, found)


def _check_times(where: str, entry: Mapping[str, Any], problems: Sequence[Problem], found: _Findings) -> None:
    if [row["problem_id"] for row in entry["problems"]] != [problem.id for problem in problems]:
        found.faults.append(f"{where}: other problems than the first {len(problems)}")
    if any(entry[name] != value for name, value in percentiles(entry["problems"]).items()):
        found.faults.append(f"{where}: p50 and p95 are not those of its problems")
    for row in entry["problems"]:
        prefill, decode, whole, cpu = (row[name] for name in TIMED)
        sound = math.isfinite(whole + cpu) and 0 < prefill + decode <= whole * (1 + 1e-9) and cpu >= 0
        fault = f"{where}: {row['problem_id']}: {prefill} + {decode} s within {whole} s, {cpu} s of CPU"
        found.look("latencies", [fault] * (not sound))


def _check_numbers(params: Params, data: Path, results: Path, found: _Findings) -> None:
    """CSVs and metrics are those of the rows, and accuracies are shares."""
    paths = (data / name for name in ("eval", "latency.json", "teacher"))
    evidence = read_evidence(params, *paths, training=data / "models")
    for exhibit in figures_of(params):
        _check_csv(results / "figures" / f"{exhibit.name}.csv", exhibit.rows(evidence.fresh()), found)
    _check_csv(results / "claims.csv", [claim_row(claim, evidence) for claim in claims_of(params)], found)
    path = results / "metrics.json"
    written = read_json(path)
    for name, value in metrics_of(evidence, data / "models").items():
        found.look("numbers of results", _wrong_number(str(path), name, value))
        if written.pop(name, None) != value:
            found.faults.append(f"{path}: {name} is not {value}")
    found.faults += [f"{path}: {name} comes from nowhere" for name in written]


def _check_csv(path: Path, rows: Sequence[Row], found: _Findings) -> None:
    expected = csv_text(rows).splitlines() if rows else []
    lines = path.read_text().splitlines() if path.is_file() else []
    if len(lines) != len(expected):
        found.faults.append(f"{path}: {len(lines)} lines instead of {len(expected)}")
    for number, (line, wanted) in enumerate(zip(lines, expected, strict=False), start=1):
        if line != wanted:
            found.faults.append(f"{path}: line {number} is not what the evaluations say")
    for row in rows:
        for name, value in row.items():
            found.look("numbers of results", _wrong_number(str(path), name, value))


def _wrong_number(where: str, name: str, value: Any) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where}: {name} is {value}"
    share = "accuracy" in name and not any(word in name for word in ("change", "minus"))
    if share and isinstance(value, float) and not 0 <= value <= 1:
        yield f"{where}: {name} is {value}, no share"
