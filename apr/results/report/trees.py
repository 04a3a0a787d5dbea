"""The thread trees of the report's viewer: of which problems, and by which models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apr.core.files import read_rows
from apr.core.params import Params
from apr.engine.slots import open_engine
from apr.evaluation.points import ModelId, Point, evaluated, points, teachers
from apr.evaluation.results import Cell, Key, ledger
from apr.evaluation.sweep import make_request
from apr.language.tokenizer import load_language
from apr.results.evidence import Evidence
from apr.results.threads import rollout_entry
from apr.rollouts.decoding import orchestrate
from apr.rollouts.records import rollouts_of
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.task import Problem
from apr.training.rl.snapshots import SNAPSHOT_SCHEMA


def choose(cell: Cell) -> dict[str, list[str]]:
    """Problems of a cell, by id, and what each is an example of: of those solved and those failed the one
    with the median number of tokens; that with the most children, and with the deepest and longest chain."""
    tokens, solved = cell.total[:, 0], cell.strict[:, 0]
    found: dict[str, list[str]] = {}
    for what, among in (("solved", np.flatnonzero(solved)), ("failed", np.flatnonzero(~solved))):
        if len(among):
            middle = among[np.argsort(tokens[among], kind="stable")][(len(among) - 1) // 2]
            found.setdefault(cell.problems[middle], []).append(what)
    for what, *columns in (("widest", cell.children, cell.total), ("deepest", cell.depth, cell.sequential)):
        most = max(range(len(solved)), key=lambda row: [column[row, 0] for column in columns])
        found.setdefault(cell.problems[most], []).append(what)
    return found


def compared(params: Params) -> list[tuple[ModelId, Point]]:
    """Model and point of all that is shown of a problem: the models that RL starts from, each before
    its policies, as little conditioned and as nearly greedy as the sweeps have them; threads come last."""
    parallel = {method: params.traces.spawns(method) > 0 for method in teachers(params)}
    found = []
    for method in sorted(parallel, key=parallel.__getitem__):
        policies = [model for model in evaluated(params)
                    if model.phase == "rl" and model.method(params) == method]  # fmt: skip
        for model in (ModelId("sft", method), *policies):
            point = min(points(params, model), key=lambda at: (
                at.temperature, at.condition is not None, -(at.condition or 0), at.join, at.sample))
            found.append((model, point))
    return found


Case = dict[str, Any]
"""A problem in the viewer, as JSON: `group`, `title`, `note`, and `rollouts`, each a `rollout_entry`."""


def problem_cases(evidence: Evidence, problems: Sequence[Problem], models: Path) -> list[Case]:
    """What `choose` picks by the last model that is asked for nothing, decoded by all that are `compared`.

    Evaluations keep no threads, so they are decoded again. They come out the same, as a rollout depends on
    its request and its model alone; where a processor rounds otherwise and one does not, it says so.
    """
    params = evidence.params
    shown = compared(params)
    if not shown:
        return []
    keys = [Key(model.name, model.phase, point.temperature, point.condition, point.join)
            for model, point in shown]  # fmt: skip
    basis = next((key for key in reversed(keys) if key.condition is None), keys[-1])
    chosen = choose(evidence.cells[basis])
    picked = [problem for problem in problems if problem.id in chosen]
    rollouts: dict[str, list[dict[str, Any]]] = {problem.id: [] for problem in picked}
    for key, (model, point) in zip(keys, shown, strict=True):
        checkpoint = models / str(model)
        language, cell = load_language(checkpoint), evidence.cells[key]
        task = open_task(params, language)
        engine = open_engine(params.engine, params.grammar.window, language.syntax.stop_ids, checkpoint)
        orchestrator = orchestrate(params, language, engine)
        requests = [make_request(task, model, problem, point) for problem in picked]
        for problem, rollout in zip(picked, orchestrator.run(requests), strict=True):
            now = ledger(rollout) | {"strict": judge(task, problem, rollout).strict}
            row = cell.problems.index(problem.id), point.sample
            same = all(cell.columns[name][row] == value for name, value in now.items())
            note = "" if same else "decoded anew, and not as in the evaluation: other rounding"
            rollouts[problem.id].append(rollout_entry(task, problem, rollout, str(key), note))
    return [
        _case("test problems", problem, f"by {basis}", rollouts[problem.id], chosen[problem.id])
        for problem in sorted(picked, key=lambda problem: list(chosen).index(problem.id))
    ]  # fmt: skip


def training_cases(params: Params, problems: Sequence[Problem], models: Path) -> list[Case]:
    """What each policy did with the same validation problems while it was trained; nothing of one whose
    training kept none."""
    found, by_id = [], {problem.id: problem for problem in problems}
    for policy in sorted(params.rl.policies):
        path = models / "rl" / policy / "rollouts.parquet"
        if not path.is_file():
            continue
        task = open_task(params, load_language(path.parent))
        steps: dict[str, dict[int, list[dict[str, Any]]]] = {}
        for row in read_rows(path, SNAPSHOT_SCHEMA):
            steps.setdefault(row["problem_id"], {}).setdefault(row["step"], []).append(row)
        for name, rows in steps.items():
            decoded = {step: rollouts_of(rows[step])[0] for step in rows}
            shown = [rollout_entry(task, by_id[name], rollout, f"{policy} after step {step}")
                     for step, rollout in decoded.items()]  # fmt: skip
            found.append(_case(f"training of rl/{policy}", by_id[name], "greedy", shown))
    return found


def _case(
    group: str, problem: Problem, note: str, rollouts: list[dict[str, Any]], kinds: Sequence[str] = ()
) -> Case:
    title = ": ".join((", ".join(kinds), f"{problem}"))
    return {"group": group, "title": title.removeprefix(": "), "note": f"{problem.id}, {note}",
            "rollouts": rollouts}  # fmt: skip
