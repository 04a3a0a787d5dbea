"""Latency at batch size 1: one problem at a time, a problem's children together (Figure 6)."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from apr.core.errors import ParamsError
from apr.core.files import write_json
from apr.core.params import DEVICES, Params
from apr.core.progress import track
from apr.engine.checkpoint import resolve_device
from apr.engine.servers.remote import RemoteDecoder
from apr.engine.slots import SlotEngine
from apr.evaluation.latency_model import measure_costs
from apr.evaluation.points import ModelId, Point, first_problems, greedy_points, timed
from apr.evaluation.results import TIMED, percentiles
from apr.evaluation.sweep import make_request
from apr.language.tokenizer import load_language
from apr.rollouts.decoding import open_decoder, orchestrate
from apr.rollouts.replay import Costs, Part, parts_of, replay
from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.task import Problem


def measure_latency(params: Params, problems: Path, models: Path, out: Path) -> None:
    """Times the first `params.eval.latency_problems` for each condition that a sweep decodes greedily, by
    each model that is timed: problem by problem, all of them in turn, so that whatever else the machine
    does, it does to all.

    Writes JSON: `device`, `torch_threads`, `workers`, and under `models`, by the model's id, `costs` (seconds
    of a step of the decoder, `Costs`) and `conditions`: one entry per condition and `join` with a list of
    `problems` (problem_id, `TIMED`, total, sequential, children, solved), the `p50` and `p95` of each of
    `TIMED`, and `modelled`: mean seconds on so many devices by these costs; servers have no steps, so no
    costs. Where no sweep of a model is greedy, its unconditioned prompt is timed. Errors as `evaluate`.
    """
    engine, named = params.engine, timed(params)
    if engine.backend != "slots" and len(named) > 1:
        raise ParamsError(f"engine.backend: {engine.backend} is not allowed; allowed: slots, as servers have "
                          f"one model and {len(named)} are timed")
    with ExitStack() as opened:
        watches = [Stopwatch(params, model, models / str(model), opened) for model in named]
        chosen = first_problems(watches[0].task, problems, params.eval.latency_problems) if watches else []
        for watch in watches:
            watch.decode(watch.points[0], chosen[0])  # the first rollout pays for what is loaded lazily
        asked = [(watch, point, problem) for problem in chosen for watch in watches for point in watch.points]
        for watch, point, problem in track(asked, "latency", len(asked), "rollout"):
            watch.time(point, problem)
        entries = {str(watch.model): watch.entry() for watch in watches}
    write_json(out, {"device": str(resolve_device(engine.device)), "torch_threads": engine.torch_threads,
                     "workers": engine.workers, "models": entries})  # fmt: skip


class Stopwatch:
    """One of the models, its decoder open as long as `opened`, and what has been timed of it."""

    def __init__(self, params: Params, model: ModelId, checkpoint: Path, opened: ExitStack):
        language = load_language(checkpoint)
        self.model, self.points, self.task = model, greedy_points(params, model), open_task(params, language)
        self._decoder = opened.enter_context(open_decoder(_few_slots(params), language, checkpoint))
        self._orchestrator = orchestrate(params, language, self._decoder)
        self._rows: dict[Point, list[dict[str, Any]]] = {point: [] for point in self.points}
        self._trees: dict[Point, list[list[list[Part]]]] = {point: [] for point in self.points}

    def decode(self, point: Point, problem: Problem) -> Rollout:
        (rollout,) = self._orchestrator.run([make_request(self.task, self.model, problem, point)])
        return rollout

    def time(self, point: Point, problem: Problem) -> None:
        before = list(_clocks(self._decoder))
        rollout = self.decode(point, problem)
        times = [end - start for start, end in zip(before, _clocks(self._decoder), strict=True)]
        usage = rollout.usage
        self._trees[point].append(parts_of(rollout))
        self._rows[point].append({
            "problem_id": problem.id, **dict(zip(TIMED, times, strict=True)), "total": usage.total,
            "sequential": usage.sequential, "children": usage.children,
            "solved": judge(self.task, problem, rollout).strict,
        })  # fmt: skip

    def entry(self) -> dict[str, Any]:
        """Returns what is written of the model. Measures the costs of its decoder's steps."""
        language, costs = self.task.language, None
        if isinstance(self._decoder, SlotEngine):
            window, size = self.task.params.grammar.window, language.vocabulary.size
            costs = measure_costs(self._decoder, window, size, language.syntax.stop_ids)
        return {"costs": costs and costs._asdict(), "conditions": [
            {"condition": point.condition, "join": point.join, "problems": rows,
             "modelled": self._modelled(point, costs), **percentiles(rows)}
            for point, rows in self._rows.items()
        ]}  # fmt: skip

    def _modelled(self, point: Point, costs: Costs | None) -> dict[int, float]:
        return {devices: float(np.mean([replay(tree, costs, devices) for tree in self._trees[point]]))
                for devices in DEVICES if costs is not None}  # fmt: skip


def _clocks(decoder: SlotEngine | RemoteDecoder) -> Iterator[float]:
    """Yields what stands on the clocks of `TIMED`."""
    yield from (decoder.prefill_seconds, decoder.decode_seconds, time.perf_counter(), time.process_time())


def _few_slots(params: Params) -> Params:
    """Returns the same with no more slots than the threads of a problem: all models are held at once."""
    engine, most = params.engine, params.grammar.max_children + 1
    slots = min(engine.slots, most) if engine.max_depth <= 1 else engine.slots
    return params.model_copy(update={"engine": engine.model_copy(update={"slots": slots})})
