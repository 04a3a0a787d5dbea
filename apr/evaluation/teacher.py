"""The symbolic solver of a method on the test problems: what its SFT model can at best learn to do."""

from pathlib import Path
from typing import Any, cast

from apr.core.files import write_rows
from apr.core.params import Params
from apr.core.progress import track
from apr.core.seeds import derive_rng
from apr.evaluation.points import ModelId, Point, first_problems, point_columns, points
from apr.evaluation.results import EVAL_SCHEMA, ledger
from apr.language import Condition, Malformed
from apr.language.tokenizer import load_language
from apr.rollouts.rollout import Rollout, Spawn, Status, Thread
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.task import Problem, Task, Trace
from apr.training.traces import asked, draw_trace

SAMPLES = 8
CONDITIONED_SAMPLES = 2


def evaluate_teacher(params: Params, method: str, problems: Path, tokenizer: Path, out: Path) -> None:
    """Runs the solver of `method` on the first `params.eval.problems` of `problems`; Parquet as `evaluate`.

    Rows have stage "solver" and temperature 0: `SAMPLES` traces per problem without a condition, and, where
    conditions count children, `CONDITIONED_SAMPLES` for each that a sweep names at stage sft. A token budget
    has no rows: that teacher is the unconditioned one, cut where `longest` is beyond the budget.
    Raises `ParamsError`, `DataError` or `CheckpointError`.
    """
    task = open_task(params, load_language(tokenizer))
    solver, at = ModelId("solver", method), teacher_points(params, method)
    chosen = first_problems(task, problems, params.eval.problems)
    rows = [point_columns(params, solver, problem, point)
            | judge_trace(task, problem, draw(task, problem, point, method))
            for problem in track(chosen, f"teacher {method}", len(chosen), "problem") for point in at]
    write_rows(out, rows, EVAL_SCHEMA)


def teacher_points(params: Params, method: str) -> list[Point]:
    """The points of `evaluate_teacher`."""
    found = [Point(None, 0.0, sample) for sample in range(SAMPLES)]
    if params.traces.spawns(method):
        wanted = {point.condition for point in points(params, ModelId("sft", method))}
        amounts = sorted(amount for amount in wanted if amount is not None)
        found += [Point(k, 0.0, sample) for k in amounts for sample in range(CONDITIONED_SAMPLES)]
    return found


def draw(task: Task, problem: Problem, point: Point, name: str) -> Trace:
    """One trace of the solver, at random; with a condition, in the prompt too, given that many children."""
    method, children = task.params.traces.parts(name)[name], point.condition
    if children is None:
        method = method.model_copy(update={"only_solved": False})
        return cast(Trace, draw_trace(task, problem, f"teacher/{name}/{point.sample}", method))
    rng = derive_rng(task.params.seed, "teacher", name, problem.id, children, point.sample)
    trace = task.demonstrate(problem, method, rng, children)
    return asked(task, problem, trace, Condition("children", children))


def judge_trace(task: Task, problem: Problem, trace: Trace) -> dict[str, Any]:
    """The columns `status` to `threads`; a trace with a thread beyond the window is truncated."""
    rollout = as_rollout(task, problem, trace)
    judgement = judge(task, problem, rollout)
    if any(thread.status == Status.TRUNCATED for thread in rollout.threads):
        judgement = judgement._replace(status=str(Status.TRUNCATED), strict=False, lenient=False,
                                       reason="a thread does not fit the window")
    return judgement._asdict() | ledger(rollout)


def as_rollout(task: Task, problem: Problem, trace: Trace) -> Rollout:
    """The trace as if a model had decoded it, so that its tokens are counted as a model's are."""
    syntax, threads, born = task.language.syntax, list[Thread](), 1
    for index, (parent, ids, ends, _) in enumerate(trace):
        depth = 0 if parent < 0 else threads[parent].depth + 1
        status = Status.DONE if len(ids) <= task.params.grammar.window else Status.TRUNCATED
        sampled, logprobs = syntax.sampled(ids).tolist(), [0.0] * len(ids)
        thread = Thread(index, parent, depth, ends[0], ids, sampled, logprobs, status)
        for at in (place for place, token in enumerate(ids, start=1) if token == syntax.run):
            messages = syntax.messages(ids[:at])
            assert not isinstance(messages, Malformed)
            thread.spawns.append(Spawn(at, list(range(born, born + len(messages)))))
            born += len(messages)
        threads.append(thread)
    return Rollout(problem.id, threads)
