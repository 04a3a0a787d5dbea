"""What `params.eval.sweeps` asks for: jobs (stage, model), and the points of each job."""

from itertools import product
from typing import Literal, NamedTuple

from apr.core.errors import ParamsError
from apr.core.params import Params


class Point(NamedTuple):
    """One way to decode every test problem once. `condition` None leaves the prompt unconditioned."""

    condition: int | None
    temperature: float
    sample: int


def jobs(params: Params) -> list[tuple[str, str]]:
    """Every (stage, model) that a sweep names."""
    named = {(stage, model) for sweep in params.eval.sweeps.values()
             for stage in sweep.stages for model in sweep.models}
    return sorted(named)


def points(params: Params, model: str, stage: str) -> list[Point]:
    """The points of one job in ascending order, each once however many sweeps name it.

    Greedy decoding has one sample, whatever `samples` says. Raises `ParamsError` if no sweep names the job.
    """
    found: set[Point] = set()
    for sweep in params.eval.sweeps.values():
        if model in sweep.models and stage in sweep.stages:
            found.update(
                Point(condition, temperature, sample)
                for condition, temperature in product(sweep.conditions, sweep.temperatures)
                for sample in range(sweep.samples if temperature > 0 else 1)
            )
    if not found:
        named = ", ".join("/".join(job) for job in jobs(params))
        raise ParamsError(f"eval.sweeps: {stage}/{model} is not allowed; allowed: {named}")
    return sorted(found, key=lambda p: (-1 if p.condition is None else p.condition, p.temperature, p.sample))


def condition_kind(params: Params, model: str, stage: str) -> Literal["tokens", "children"]:
    """What a condition counts: children for the parallel solver, tokens for the serial ones."""
    method = model if stage == "sft" else params.rl.policies[model].method
    return "children" if params.traces.methods[method].solver == "apr" else "tokens"
