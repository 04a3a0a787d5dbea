"""What `params.eval.sweeps` asks for: models, the points of each, the problems."""

from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from apr.core.errors import DataError, ParamsError
from apr.core.params import Join, Params, Unit
from apr.tasks.problems import read_problems
from apr.tasks.task import Problem, Task


class Point(NamedTuple):
    """One way to decode every test problem once. `condition` None leaves the prompt unconditioned."""

    condition: int | None
    temperature: float
    sample: int
    join: Join = "all"


Phase = Literal["sft", "rl", "solver"]


class ModelId(NamedTuple):
    """What is evaluated: a method's model after SFT, a policy's after RL, or a method's own solver.

    As text, such as `sft/apr`, it is also the path below the folders of models and evaluations.
    """

    phase: Phase
    name: str

    def __str__(self) -> str:
        return f"{self.phase}/{self.name}"

    def method(self, params: Params) -> str:
        """Returns the method of the traces that it learnt from, before RL too."""
        return params.rl.policies[self.name].method if self.phase == "rl" else self.name

    def condition_kind(self, params: Params, amount: int) -> Unit:
        """Returns what a condition counts: children where the solver spawns, tokens where it is serial, and
        devices of a policy that was trained to be asked for them."""
        return params.condition_kind(self.method(params), amount, self.name if self.phase == "rl" else None)


def evaluated(params: Params) -> list[ModelId]:
    """Returns every model that a sweep names, sorted."""
    return sorted({ModelId(phase, name) for sweep in params.eval.sweeps.values()
                   for phase in sweep.stages for name in sweep.models})


def teachers(params: Params) -> list[str]:
    """The methods whose solver is evaluated beside their SFT model: those that an RL policy starts from, and
    that have a solver of their own."""
    trained = {policy.method for policy in params.rl.policies.values()}
    return [name for phase, name in evaluated(params) if phase == "sft" and name in trained
            and [*params.traces.parts(name)] == [name]]  # fmt: skip


def timed(params: Params) -> list[ModelId]:
    """The models whose latency is measured: the policies, and the SFT models that they start from."""
    return [model for model in evaluated(params) if model.phase == "rl" or model.name in teachers(params)]


def points(params: Params, model: ModelId) -> list[Point]:
    """Returns the points of a model in ascending order, each once however many sweeps name it.

    Greedy decoding has one sample, whatever `samples` says. Raises `ParamsError` if no sweep names the model.
    """
    found: set[Point] = set()
    for sweep in params.eval.sweeps.values():
        if model.name in sweep.models and model.phase in sweep.stages:
            found.update(
                Point(condition, temperature, sample, sweep.join)
                for condition, temperature in product(sweep.conditions, sweep.temperatures)
                for sample in range(sweep.samples if temperature > 0 else 1)
            )
    if not found:
        named = ", ".join(map(str, evaluated(params)))
        raise ParamsError(f"eval.sweeps: {model} is not allowed; allowed: {named}")
    return sorted(found, key=lambda p: (-1 if p.condition is None else p.condition, *p[1:]))


def greedy_points(params: Params, model: ModelId) -> list[Point]:
    """Those that are decoded greedily; unconditioned if there are none."""
    return [p for p in points(params, model) if p.temperature == 0] or [Point(None, 0.0, 0)]


def first_problems(task: Task, path: Path, count: int) -> list[Problem]:
    """The first `count` problems of a file. Raises `DataError` if it holds fewer."""
    problems = read_problems(task, path)
    if len(problems) < count:
        raise DataError(f"{path}: holds {len(problems)} problems, eval asks for {count}")
    return problems[:count]


def point_columns(params: Params, model: ModelId, problem: Problem, point: Point) -> dict[str, Any]:
    """Returns the columns `model` to `sample` and `join` of an evaluation; `stage` is the model's phase."""
    kind = None if point.condition is None else model.condition_kind(params, point.condition)
    return {"model": model.name, "stage": model.phase, "problem_id": problem.id, "condition_kind": kind,
            "condition_amount": point.condition, "temperature": point.temperature, "sample": point.sample,
            "join": point.join}
