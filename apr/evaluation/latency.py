"""Latency at batch size 1: one problem at a time, a problem's children together (Figure 6)."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from apr.core.files import write_json
from apr.core.params import Params
from apr.core.progress import track
from apr.engine.checkpoint import resolve_device
from apr.engine.slots import SlotEngine
from apr.evaluation.latency_model import DEVICES, Part, measure_costs, parts_of, replay
from apr.evaluation.points import ModelId, Phase, Point, first_problems, points
from apr.evaluation.results import TIMED, percentiles
from apr.evaluation.sweep import make_request
from apr.language.tokenizer import load_language
from apr.rollouts.decoding import open_decoder, orchestrate
from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.task import Problem


def measure_latency(
    params: Params, model: str, stage: Phase, problems: Path, checkpoint: Path, out: Path
) -> None:
    """Times the first `params.eval.latency_problems` for each condition that a sweep decodes greedily.

    Writes JSON: `device`, `torch_threads`, `costs` (seconds of a step of the decoder, `Costs`), and under
    `conditions` one entry per condition and `join` with a list of `problems` (problem_id, `TIMED`, total,
    sequential, children, solved), the `p50` and `p95` of each of `TIMED`, and `modelled`: mean seconds on so
    many devices by these costs; servers have no steps, so no costs. Where no sweep is greedy, the
    unconditioned prompt is timed. Errors as `evaluate`.
    """
    named = ModelId(stage, model)
    greedy = [point for point in points(params, named) if point.temperature == 0] or [Point(None, 0.0, 0)]
    language = load_language(checkpoint)
    task = open_task(params, language)
    chosen = first_problems(task, problems, params.eval.latency_problems)
    asked = [(point, problem) for point in greedy for problem in chosen]
    rows: dict[Point, list[dict[str, Any]]] = {point: [] for point in greedy}
    trees: dict[Point, list[list[list[Part]]]] = {point: [] for point in greedy}
    costs = None
    with open_decoder(params, language, checkpoint) as decoder:
        orchestrator = orchestrate(params, language, decoder)

        def decode(point: Point, problem: Problem) -> tuple[Rollout, list[float]]:
            request = make_request(task, named, problem, point)
            before = decoder.prefill_seconds, decoder.decode_seconds, time.perf_counter()
            (rollout,) = orchestrator.run([request])
            after = decoder.prefill_seconds, decoder.decode_seconds, time.perf_counter()
            return rollout, [end - start for start, end in zip(before, after, strict=True)]

        decode(*asked[0])  # the first rollout pays for what is loaded lazily
        for point, problem in track(asked, f"latency {named}", len(asked), "problem"):
            rollout, times = decode(point, problem)
            usage = rollout.usage
            trees[point].append(parts_of(rollout))
            rows[point].append({
                "problem_id": problem.id, **dict(zip(TIMED, times, strict=True)), "total": usage.total,
                "sequential": usage.sequential, "children": usage.children,
                "solved": judge(task, problem, rollout).strict,
            })  # fmt: skip
        if isinstance(decoder, SlotEngine):
            size, stop_ids = language.vocabulary.size, language.syntax.stop_ids
            costs = measure_costs(decoder, params.grammar.window, size, stop_ids)

    def modelled(point: Point) -> dict[int, float]:
        return {devices: float(np.mean([replay(tree, costs, devices) for tree in trees[point]]))
                for devices in DEVICES if costs is not None}

    write_json(out, {
        "model": model, "stage": stage, "device": str(resolve_device(params.engine.device)),
        "torch_threads": params.engine.torch_threads, "costs": costs and costs._asdict(),
        "conditions": [{"condition": point.condition, "join": point.join, "problems": measured,
                        "modelled": modelled(point), **percentiles(measured)}
                       for point, measured in rows.items()],
    })  # fmt: skip
