"""The evaluation of one model at every point of the sweeps (Figures 4, 5, 7, 8; Tables 1-3)."""

from pathlib import Path

from apr.core.files import write_rows
from apr.core.params import Params
from apr.core.progress import Meter
from apr.core.seeds import derive_seed
from apr.engine.shared import SharedDecoder
from apr.evaluation.points import ModelId, Phase, Point, first_problems, point_columns, points
from apr.evaluation.results import ledger, replayed, schema_of
from apr.language import Condition
from apr.language.tokenizer import load_language
from apr.rollouts.decoding import open_decoder, orchestrate, prompt_of
from apr.rollouts.rollout import Request, Rollout
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.task import Problem, Task


def evaluate(params: Params, model: str, stage: Phase, problems: Path, checkpoint: Path, out: Path) -> None:
    """Decodes the first `params.eval.problems` of `problems` at every point and writes Parquet to `out`.

    A row (`schema_of`) per problem, condition, temperature and sample, in this order. `model` is a method
    at stage "sft" and a policy at stage "rl". Raises `ParamsError`, `DataError` or `CheckpointError`.
    """
    named = ModelId(stage, model)
    at = points(params, named)
    language = load_language(checkpoint)
    task = open_task(params, language)
    chosen = first_problems(task, problems, params.eval.problems)
    owners = [(problem, point) for problem in chosen for point in at]
    requests = [make_request(task, named, *owner) for owner in owners]
    asked = {request.id: problem for request, (problem, _) in zip(requests, owners, strict=True)}
    done = right = 0
    with (
        open_decoder(params, language, checkpoint) as decoder,
        Meter(f"evaluate {named}", len(requests), "rollout") as meter,
    ):

        def tell(ended: list[Rollout], sampled: int) -> None:
            nonlocal done, right
            done += len(ended)
            right += sum(judge(task, asked[rollout.id], rollout).strict for rollout in ended)
            if ended:
                meter.update(done, f"accuracy {right / done:.1%}, {sampled} tokens")

        rollouts = orchestrate(params, language, SharedDecoder(decoder)).run(requests, tell)
    rows = [
        point_columns(params, named, problem, point)
        | judge(task, problem, rollout)._asdict()
        | ledger(rollout)
        | replayed(params, rollout)
        for (problem, point), rollout in zip(owners, rollouts, strict=True)
    ]
    write_rows(out, rows, schema_of(params))


def make_request(
    task: Task, model: ModelId, problem: Problem, point: Point
) -> Request:
    """Returns the request for a rollout of `problem` by `model` at `point`.

    Its noise depends on seed, problem and point, not on the model: differences between models are paired.
    Raises `ParamsError` if the window leaves no room after the prompt.
    """
    condition = None
    if point.condition is not None:
        condition = Condition(model.condition_kind(task.params, point.condition), point.condition)
    prompt = prompt_of(task, problem, condition)
    name = f"{problem.id}/{point.condition}/{point.temperature}/{point.sample}"
    seed = derive_seed(task.params.seed, "evaluate", problem.id, point.sample)
    return Request(name, prompt, point.temperature, seed, point.join)
