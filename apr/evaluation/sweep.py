"""One evaluation job: every sweep point of one model at one stage (Figures 4, 5, 7, 8; Tables 1-3)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from apr.core.errors import ParamsError
from apr.core.files import write_rows
from apr.core.params import Params
from apr.core.progress import Meter
from apr.core.seeds import derive_seed
from apr.engine.checkpoint import load_model
from apr.engine.interface import Decoder
from apr.engine.remote import RemoteDecoder
from apr.engine.slots import SlotEngine
from apr.engine.wires import wire_of
from apr.evaluation.judge import EVAL_SCHEMA, ledger, verdict
from apr.evaluation.points import Point, condition_kind, first_problems, point_columns, points
from apr.language import Condition, Language
from apr.language.tokenizer import load_language
from apr.rollouts.orchestrator import Orchestrator
from apr.rollouts.rollout import Limits, Request, Rollout
from apr.tasks.countdown import Problem


def evaluate(params: Params, model: str, stage: str, problems: Path, checkpoint: Path, out: Path) -> None:
    """Decodes the first `params.eval.problems` of `problems` at every point and writes Parquet to `out`.

    A row (`EVAL_SCHEMA`) per problem, condition, temperature and sample, in this order. `model` is a method
    at stage "sft" and a policy at stage "rl". Raises `ParamsError`, `DataError` or `CheckpointError`.
    """
    at = points(params, model, stage)
    kind = condition_kind(params, model, stage)
    language = load_language(checkpoint)
    chosen = first_problems(problems, params.eval.problems)
    owners = [(problem, point) for problem in chosen for point in at]
    requests = [make_request(params, language, problem, point, kind) for problem, point in owners]
    with (
        open_decoder(params, language, checkpoint) as decoder,
        Meter(f"evaluate {stage}/{model}", len(requests), "rollout") as meter,
    ):
        names = {request.id: problem for request, (problem, _) in zip(requests, owners, strict=True)}
        tally = Tally(language, names, meter)
        rollouts = orchestrate(params, language, decoder).run(requests, tally.update)
    rows = [
        point_columns(model, stage, problem, point, kind)
        | verdict(language, problem, rollout)
        | ledger(rollout)
        for (problem, point), rollout in zip(owners, rollouts, strict=True)
    ]
    write_rows(out, rows, EVAL_SCHEMA)


class Tally:
    """Shows how many rollouts have ended, and the strict accuracy of those."""

    def __init__(self, language: Language, problems: Mapping[str, Problem], meter: Meter):
        self._language, self._problems, self._meter = language, problems, meter
        self._done = self._right = 0

    def update(self, ended: list[Rollout], sampled: int) -> None:
        for rollout in ended:
            self._done += 1
            self._right += verdict(self._language, self._problems[rollout.id], rollout)["strict"]
        if ended:
            self._meter.update(self._done, f"accuracy {self._right / self._done:.1%}, {sampled} tokens")


def make_request(
    params: Params, language: Language, problem: Problem, point: Point, kind: Literal["tokens", "children"]
) -> Request:
    """The noise depends on seed, problem and point, not on the model: differences between models are paired.

    Raises `ParamsError` if the window leaves no room after the prompt.
    """
    condition = None if point.condition is None else Condition(kind, point.condition)
    prompt = language.prompt(problem.numbers, problem.target, condition)
    if len(prompt) >= params.grammar.window:
        raise ParamsError(f"grammar.window: {params.grammar.window} is not allowed; allowed: more than the "
                          f"{len(prompt)} tokens of the prompt of problem {problem.id!r}")
    name = f"{problem.id}/{point.condition}/{point.temperature}/{point.sample}"
    seed = derive_seed(params.seed, "evaluate", problem.id, point.sample)
    return Request(name, prompt, point.temperature, seed, point.join)


Timed = SlotEngine | RemoteDecoder
"""Decoders that count what they take."""


def open_engine(params: Params, language: Language, checkpoint: Path) -> SlotEngine:
    """The model of `checkpoint` in an engine with empty slots. Raises `CheckpointError`."""
    torch.set_num_threads(params.engine.torch_threads)
    model = load_model(checkpoint, params.engine.device)
    return SlotEngine(model, language.syntax.stop_ids, params.engine.slots, params.grammar.window)


@contextmanager
def open_decoder(params: Params, language: Language, checkpoint: Path) -> Iterator[Timed]:
    """`open_engine`, or the servers of `engine.endpoints`.

    Raises `CheckpointError`. That servers have the same model is for their owner to see to.
    """
    engine, stop_ids = params.engine, language.syntax.stop_ids
    if engine.backend == "slots":
        yield open_engine(params, language, checkpoint)
        return
    wire = wire_of(engine.backend, engine.served_model)
    size, timeout = language.vocabulary.size, engine.timeout
    with RemoteDecoder(engine.endpoints, wire, stop_ids, size, engine.slots, timeout) as decoder:
        yield decoder


def orchestrate(params: Params, language: Language, decoder: Decoder) -> Orchestrator:
    """Thread trees on `decoder`, within the limits of `params`."""
    limits = Limits(params.grammar.window, params.engine.max_tokens, params.grammar.max_children,
                    params.engine.max_depth)
    return Orchestrator(decoder, language.syntax, limits, params.engine.policy)
