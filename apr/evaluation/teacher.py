"""The symbolic solver of a method on the test problems: what its SFT model can at best learn to do."""

from pathlib import Path
from typing import Any, cast

from apr.core.files import write_rows
from apr.core.params import Params
from apr.core.progress import track
from apr.core.seeds import derive_rng
from apr.evaluation.points import ModelId, Point, first_problems, point_columns, points
from apr.evaluation.results import EVAL_SCHEMA, ledger
from apr.language import Condition, Language
from apr.language import events as ev
from apr.language.tokenizer import load_language
from apr.rollouts.rollout import Rollout, Spawn, Status, Thread
from apr.rollouts.verdict import judge
from apr.tasks.countdown import Problem
from apr.tasks.countdown.expand import HEURISTICS, expand
from apr.tasks.countdown.search import ROOT_THREAD, Trace, solve_trace
from apr.training.traces import draw_trace, encode_thread

SAMPLES = 8
CONDITIONED_SAMPLES = 2
ATTEMPTS = 200
"""Traces drawn at most for one with the children that were asked for."""


def evaluate_teacher(params: Params, method: str, problems: Path, tokenizer: Path, out: Path) -> None:
    """Runs the solver of `method` on the first `params.eval.problems` of `problems`; Parquet as `evaluate`.

    Rows have stage "solver" and temperature 0: `SAMPLES` traces per problem without a condition, and, where
    conditions count children, `CONDITIONED_SAMPLES` for each that a sweep names at stage sft. A token budget
    has no rows: that teacher is the unconditioned one, cut where `longest` is beyond the budget.
    Raises `ParamsError`, `DataError` or `CheckpointError`.
    """
    language = load_language(tokenizer)
    solver, at = ModelId("solver", method), teacher_points(params, method)
    chosen = first_problems(problems, params.eval.problems)
    rows = [point_columns(params, solver, problem, point)
            | judge_trace(language, draw(problem, point, method, params), params.grammar.window)
            for problem in track(chosen, f"teacher {method}", len(chosen), "problem") for point in at]
    write_rows(out, rows, EVAL_SCHEMA)


def teacher_points(params: Params, method: str) -> list[Point]:
    """The points of `evaluate_teacher`."""
    found = [Point(None, 0.0, sample) for sample in range(SAMPLES)]
    model = ModelId("sft", method)
    if model.condition_kind(params) == "children":
        asked = {point.condition for point in points(params, model)}
        amounts = sorted(amount for amount in asked if amount is not None)
        found += [Point(k, 0.0, sample) for k in amounts for sample in range(CONDITIONED_SAMPLES)]
    return found


def draw(problem: Problem, point: Point, name: str, params: Params) -> Trace:
    """One trace of the solver, at random; with a condition, in the prompt too, given that many children."""
    method = params.traces.methods[name].model_copy(update={"only_solved": False})
    if point.condition is None:
        return cast(Trace, draw_trace(problem, f"teacher/{name}/{point.sample}", method, params))
    trace = draw_given(problem, point.condition, point.sample, name, params)
    condition = Condition("children", point.condition)
    trace.threads[0].events[0] = ev.RootPrompt(problem.target, problem.numbers, condition)
    return trace


def draw_given(problem: Problem, wanted: int, sample: int, name: str, params: Params) -> Trace:
    """The solver's trace given that it `wanted` so many children, by rejection.

    Of a problem that never has that many, or not in `ATTEMPTS` draws, the trace with the closest number (the
    smaller of two). Where only the root's first node can spawn, beams that cannot give the number are not
    tried: its children are then the node's successors, if it has two, or none.
    """
    method, largest = params.traces.methods[name], params.problems.max_value
    rng = derive_rng(params.seed, "teacher", name, problem.id, wanted, sample)
    beams, asked = list(range(method.beam[0], method.beam[1] + 1)), wanted
    if method.spawn_depth == 0:
        heuristic = HEURISTICS[method.heuristic]
        most = len(expand(problem.numbers, problem.target, beams[-1], largest, heuristic))
        widths = {beam: min(beam, most) if min(beam, most) >= 2 else 0 for beam in beams}
        wanted = min({0, *widths.values()}, key=lambda width: (abs(width - asked), width))
        beams = [beam for beam in beams if wanted in (0, widths[beam])]
    drawn: list[Trace] = []
    while len(drawn) < ATTEMPTS and (not drawn or drawn[-1].children != wanted):
        beam = rng.choice(beams)
        drawn.append(solve_trace(problem, method.model_copy(update={"beam": (beam, beam)}), largest, rng))
    return min(drawn, key=lambda trace: (abs(trace.children - wanted), trace.children))


def judge_trace(language: Language, trace: Trace, window: int) -> dict[str, Any]:
    """The columns `status` to `threads`; a trace with a thread beyond `window` tokens is truncated."""
    rollout = as_rollout(language, trace, window)
    judgement = judge(language, trace.problem, rollout)
    if any(thread.status == Status.TRUNCATED for thread in rollout.threads):
        judgement = judgement._replace(status=str(Status.TRUNCATED), strict=False, lenient=False,
                                       reason="a thread does not fit the window")
    return judgement._asdict() | ledger(rollout)


def as_rollout(language: Language, trace: Trace, window: int) -> Rollout:
    """The trace as if a model had decoded it, so that its tokens are counted as a model's are."""
    threads, born = [], 1
    for index, demonstration in enumerate(trace.threads):
        ids, sampled = encode_thread(language, demonstration)
        thread = Thread(
            index, demonstration.parent,
            depth=int(demonstration.parent != ROOT_THREAD),  # the solver's children do not spawn
            prompt_length=len(language.encode(demonstration.events[:1])),
            ids=ids, sampled=sampled, logprobs=[0.0] * len(ids),
            status=Status.TRUNCATED if len(ids) > window else Status.DONE,
        )  # fmt: skip
        for place, event in enumerate(demonstration.events, start=1):
            if isinstance(event, ev.Spawn):
                at = len(language.encode(demonstration.events[:place]))
                thread.spawns.append(Spawn(at, list(range(born, born + len(event.nodes)))))
                born += len(event.nodes)
        threads.append(thread)
    return Rollout(trace.problem.id, threads)
