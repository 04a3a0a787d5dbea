"""Seconds of jobs at the rates of a recorded run, and the report of `apr plan`."""

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from apr.core.files import read_json
from apr.engine.flops import DEVICES
from apr.pipeline.cost import NUMBER, UTILISATION, Cost, Estimate
from apr.pipeline.decoded import ROLLOUTS, habits_of
from apr.pipeline.plan import load_scale

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def work(job: str, cost: Cost) -> dict[str, float]:
    """What a job's seconds are a sum of, each at a rate of its own: what it does, and a start, which takes
    longer with PyTorch or a pool of processes. RL trains and decodes at the rates of SFT and evaluations."""
    stage, trained = job.split("/")[0], {"torch": 1.0, "trained": cost.trained}
    decoded = {"torch": 1.0, "decoded": cost.decoded, "rollouts": cost.units}
    by_stage = {"sft": trained, "rl": trained | decoded, "evaluate": decoded, "tokenizer": {"start": 1.0},
                "latency": {"torch": 1.0, "in turn": cost.units},
                "traces": {"pool": 1.0, "traced": cost.tokens},
                "teacher": {"start": 1.0, "solved": cost.tokens}}  # fmt: skip
    return by_stage.get(stage, {"start": 1.0, stage: cost.units})


class Rates:
    """Seconds of jobs on the machine of a recorded run (`results/run.json`), whose jobs had the costs `ran`.

    The rates of all `work` are fitted to all its jobs at once: those that several jobs share are not those of
    any one of them, and jobs with work of their own (figures, claims) only repeat what they took.
    """

    def __init__(self, run: Mapping[str, Any], ran: Mapping[str, Cost]):
        jobs = run["jobs"].items()
        seconds = {name: job["seconds"] for name, job in jobs if name in ran and "seconds" in job}
        done = {name: work(name, ran[name]) for name in sorted(seconds)}
        kinds = sorted({kind for parts in done.values() for kind in parts})
        rows = [[parts.get(kind, 0.0) / seconds[name] for kind in kinds] for name, parts in done.items()]
        relative = np.array(rows)
        scale = relative.max(0)
        fitted = nnls(relative / scale, np.ones(len(done)))[0] / scale
        self.of_work = dict(zip(kinds, fitted.tolist(), strict=True))

    def seconds(self, job: str, cost: Cost) -> float | None:
        """None for a job with work that the run did not time."""
        parts = work(job, cost)
        if not self.of_work.keys() >= parts.keys():
            return None
        return sum(amount * self.of_work[kind] for kind, amount in parts.items())


def adopt_habits(estimate: Estimate, seen: Path) -> None:
    """Gives the estimate of a recorded run the habits that Figure 7 of that run shows, if it was drawn."""
    policies = {policy: estimate.costs[f"rl/{policy}"] for policy in estimate.params.rl.policies}
    written = {policy: cost.tokens / cost.units for policy, cost in policies.items()}
    if seen.is_file():
        rows = csv.DictReader(seen.read_text().splitlines())
        estimate.adopt(habits_of(estimate.params, written, rows))


def report(scale: str, recorded: Path | None) -> Iterator[str]:
    """The lines of `apr plan`: a row for each job, their sum, and how they were estimated; with the rates of
    the `recorded` run, and the habits of its models in `figures` beside it."""
    estimate, here = Estimate(load_scale(scale)), dict[str, float | None]()
    run = read_json(recorded) if recorded else None
    if recorded and run:
        ran = estimate if run["scale"] == scale else Estimate(load_scale(run["scale"]))
        adopt_habits(ran, recorded.parent / "figures/fig7.csv")
        if ran is not estimate:
            estimate.adopt(ran.decoder.habits)
        rates = Rates(run, ran.costs)
        here = {name: rates.seconds(name, cost) for name, cost in estimate.costs.items()}
    titles = ["job", "tokens", "FLOPs", "disk", "until done", *(f"{name} h" for name in DEVICES)]
    rows = [[*titles, "here h"] if here else titles]
    for name, cost in estimate.costs.items():
        hours = [cost.hours(device) for device in DEVICES.values()]
        rows.append([name, *map(short, [cost.tokens, cost.flops, cost.kept, cost.until, *hours])])
        rows[-1] += [short((here[name] or 0) / 3600)] if here else []
    every = list(estimate.costs.values())
    rows.append(["all", "-", short(sum(c.flops for c in every)), short(sum(c.kept for c in every)),
                 short(max(c.until for c in every)),
                 *(short(sum(c.hours(device) for c in every)) for device in DEVICES.values())])
    rows[-1] += [short(sum(seconds or 0 for seconds in here.values()) / 3600)] if here else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
    yield from notes(estimate, run)


def short(value: float | None) -> str:
    """Three digits and a prefix: 1.23 G; nothing for nothing."""
    if not value:
        return "-"
    value = float(f"{value:.3g}")
    power = max(0, min(int(math.log10(value) // 3), len(PREFIXES) - 1))
    return f"{value / 1000**power:.3g}{PREFIXES[power]}"


def notes(estimate: Estimate, run: Mapping[str, Any] | None) -> Iterator[str]:
    """What was estimated how."""
    params, model, sft = estimate.params, estimate.model, estimate.params.sft
    slots, window = params.engine.slots, params.grammar.window
    yield ""
    yield (f"model: {model.parameters:,} parameters, {model.sizes.weights:,} in matrices; its KV cache takes "
           f"{short(NUMBER * model.cached * slots * window)}B for {slots} slots of {window} tokens")
    for method, seen in estimate.trained_on.items():
        tokens = sft.tokens[method]
        yield (f"sft/{method}: {short(tokens / seen.mean)} sequences of {seen.mean:.0f} tokens, "
               f"{tokens / seen.mean / seen.threads:.3g} epochs, "
               f"{tokens / sft.row_tokens / sft.rows_per_step:,.0f} steps")
    yield (f"tokens: written, trained on or sampled; from solvers run on {len(estimate.problems['train'])} "
           f"training problems, and for {ROLLOUTS} rollouts of a job")
    habits = [f"{stage} {kind} {greedy:.2f} and {hot:.2f}"
              for (stage, kind), (greedy, hot) in sorted(estimate.decoder.habits.items())]  # fmt: skip
    yield f"models decode, greedily and at T = 1, of what solvers write: {', '.join(habits) or 'all'}"
    yield "FLOPs: of training 6 N T + 6 L d sum(length^2), of decoding a third; every group of RL has signal"
    yield "disk: Parquet and weights; until done: besides, trainer states (all: of the largest job)"
    peaks = "; ".join(f"{name} {device.flops['bfloat16'] / 1e12:g} TFLOP/s in bfloat16, "
                      f"{device.flops['float32'] / 1e12:g} in float32, {device.bandwidth / 1e12:g} TB/s"
                      for name, device in DEVICES.items())
    yield f"{', '.join(DEVICES)}: {UTILISATION:.0%}, assumed and not measured, of the peaks {peaks};"
    yield f"  SFT in {sft.precision}, RL and decoding in float32; decoding bound by FLOP/s or by bandwidth"
    if run is not None:
        machine = run["machine"]
        yield (f"here: one job after the other at the rates of a run of scale {run['scale']!r} on "
               f"{machine['cores']} cores ({machine['processor']})")
