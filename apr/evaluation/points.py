"""What `params.eval.sweeps` asks for: jobs (stage, model), the points of each job, the problems."""

from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from apr.core.errors import DataError, ParamsError
from apr.core.params import Join, Params
from apr.tasks.problems import read_problems
from apr.tasks.task import Problem, Task


class Point(NamedTuple):
    """One way to decode every test problem once. `condition` None leaves the prompt unconditioned."""

    condition: int | None
    temperature: float
    sample: int
    join: Join = "all"


def jobs(params: Params) -> list[tuple[str, str]]:
    """Every (stage, model) that a sweep names."""
    return sorted({(stage, model) for sweep in params.eval.sweeps.values()
                   for stage in sweep.stages for model in sweep.models})


def teachers(params: Params) -> list[str]:
    """The methods whose solver is evaluated beside their SFT model: those that an RL policy starts from."""
    trained = {policy.method for policy in params.rl.policies.values()}
    return [model for stage, model in jobs(params) if stage == "sft" and model in trained]


def points(params: Params, model: str, stage: str) -> list[Point]:
    """The points of one job in ascending order, each once however many sweeps name it.

    Greedy decoding has one sample, whatever `samples` says. Raises `ParamsError` if no sweep names the job.
    """
    found: set[Point] = set()
    for sweep in params.eval.sweeps.values():
        if model in sweep.models and stage in sweep.stages:
            found.update(
                Point(condition, temperature, sample, sweep.join)
                for condition, temperature in product(sweep.conditions, sweep.temperatures)
                for sample in range(sweep.samples if temperature > 0 else 1)
            )
    if not found:
        named = ", ".join("/".join(job) for job in jobs(params))
        raise ParamsError(f"eval.sweeps: {stage}/{model} is not allowed; allowed: {named}")
    return sorted(found, key=lambda p: (-1 if p.condition is None else p.condition, *p[1:]))


def condition_kind(params: Params, model: str, stage: str) -> Literal["tokens", "children"]:
    """What a condition counts: children where the solver spawns, tokens where it is serial."""
    method = model if stage == "sft" else params.rl.policies[model].method
    return params.traces.methods[method].counts


def first_problems(task: Task, path: Path, count: int) -> list[Problem]:
    """The first `count` problems of a file. Raises `DataError` if it holds fewer."""
    problems = read_problems(task, path)
    if len(problems) < count:
        raise DataError(f"{path}: holds {len(problems)} problems, eval asks for {count}")
    return problems[:count]


def point_columns(model: str, stage: str, problem: Problem, point: Point, kind: str) -> dict[str, Any]:
    """The columns `model` to `sample`."""
    return {"model": model, "stage": stage, "problem_id": problem.id,
            "condition_kind": None if point.condition is None else kind, "condition_amount": point.condition,
            "temperature": point.temperature, "sample": point.sample, "join": point.join}
