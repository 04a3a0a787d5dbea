"""All figures and tables, each as SVG, PNG and the CSV it is drawn from, and the metrics of a run."""

from pathlib import Path
from types import ModuleType

import matplotlib

from apr.core.errors import DataError
from apr.core.files import atomic_path, read_json, write_json, write_text
from apr.core.params import Params
from apr.core.progress import track
from apr.evaluation.points import condition_kind, jobs
from apr.evaluation.results import Cell, Key
from apr.results.evidence import Evidence, accuracy, csv_text, mean, read_evidence
from apr.results.figures import (
    devices,
    fig4a,
    fig4b,
    fig5,
    fig6,
    fig7,
    fig8,
    joins,
    style,
    table1,
    table2,
    table3,
    table4,
)

FIGURES = (fig4a, fig4b, fig5, fig6, fig7, fig8, table1, table2, table3, table4, joins, devices)
"""Modules with CAPTION, `rows(evidence)` and `draw(rows, notes)`, where notes end up in the caption."""


def make_figures(
    params: Params, evaluations: Path, latencies: Path, models: Path, out: Path, metrics: Path
) -> None:
    """Writes ``<id>.{svg,png,csv}`` for each of `FIGURES` into the directory `out`, and the file `metrics`.

    Reads ``evaluations/<stage>/<model>.parquet`` and ``latencies/<stage>/<model>.json``, and nothing of
    `models` but the metrics of training. Points that no sweep decoded are left out and named in the caption.
    Raises `DataError` if an evaluation is missing or broken, or if a figure has no point at all.
    """
    evidence = read_evidence(params, evaluations, latencies)
    with atomic_path(out) as partial:
        partial.mkdir()
        for module in track(FIGURES, "figures", len(FIGURES), "figure"):
            write_figure(module, evidence, partial)
    write_json(metrics, metrics_of(evidence, models))


def name_of(module: ModuleType) -> str:
    return module.__name__.rsplit(".", 1)[-1]


def write_figure(module: ModuleType, evidence: Evidence, out: Path) -> None:
    name = name_of(module)
    own = evidence.fresh()
    rows = module.rows(own)
    if not rows:
        raise DataError(f"eval.sweeps: {name} has no point at all; missing: {own.lacks()}")
    problems = min(row["problems"] for row in rows)
    notes = [module.CAPTION, f"{problems} test problems; intervals: 95 % bootstrap."]
    with matplotlib.rc_context(style.RC):
        figure = module.draw(rows, notes)
        if own.missing:
            notes.append(f"Not measured: {own.lacks()}.")
        caption = " ".join(notes)
        style.add_caption(figure, caption)
        style.save(figure, out / name, caption)
    write_text(out / f"{name}.csv", csv_text(rows))


def metrics_of(evidence: Evidence, models: Path) -> dict[str, float]:
    """What tells two runs apart: each model's training, accuracy and cost, and what RL and APR gain.

    A model that was never run unconditioned is described by its largest condition.
    """
    found: dict[str, float] = {}
    greedy: dict[tuple[str, str], Cell] = {}
    for stage, model in jobs(evidence.params):
        name = {"sft": "loss", "rl": "reward"}[stage]
        found[f"{stage}_{model}_train_{name}"] = read_json(models / stage / model / "metrics.json")[name]
        for temperature, name in ((0.0, "greedy"), (1.0, "T1")):
            conditions = evidence.conditions(model, stage, temperature)
            if not conditions:
                continue
            condition = None if None in conditions else conditions[-1]
            cell = evidence.cells[Key(model, stage, temperature, condition)]
            found[f"{stage}_{model}_accuracy_{name}"] = float(accuracy(cell).mean())
            if temperature == 0:
                greedy[stage, model] = cell
                parallel = condition_kind(evidence.params, model, stage) == "children"
                for column in ("total", "sequential", "children") if parallel else ("total",):
                    found[f"{stage}_{model}_{column}_greedy"] = float(mean(cell, column).mean())
    pairs = {f"apr_minus_sos_plus_{stage}": ((stage, "apr"), (stage, "sos_plus")) for stage in style.STAGES}
    pairs |= {f"rl_minus_sft_{model}": (("rl", model), ("sft", model)) for _, model in greedy}
    for name, (one, other) in pairs.items():
        if one in greedy and other in greedy:
            after, before = accuracy(greedy[one]), accuracy(greedy[other])
            found |= evidence.change(f"{name}_accuracy_greedy", after, before)
    return {name: round(value, 6) for name, value in found.items()}
