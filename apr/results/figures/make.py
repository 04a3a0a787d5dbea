"""All figures and tables, each as SVG, PNG and the CSV it is drawn from, and the metrics of a run."""

from pathlib import Path

from apr.core.files import atomic_path, read_json, write_json
from apr.core.params import Params
from apr.core.progress import track
from apr.evaluation.points import evaluated
from apr.evaluation.results import Cell, Key
from apr.results.evidence import Evidence, accuracy, mean, read_evidence
from apr.results.figures import style
from apr.results.figures.controllers import CHILDREN, CONTROLLERS
from apr.results.figures.credit import CREDIT
from apr.results.figures.depth import DEPTH
from apr.results.figures.devices import DEVICES_ASKED
from apr.results.figures.digits import DIGITS
from apr.results.figures.exhibit import Exhibit, write_exhibit
from apr.results.figures.latency import DEVICES, FIG6, JOINS
from apr.results.figures.mixed import MIXED
from apr.results.figures.rewards import REWARDED, REWARDS
from apr.results.figures.rl import FIG5, FIG7
from apr.results.figures.scaling import FIG4A, FIG4B, FIG8
from apr.results.figures.tables import TABLES

FIGURES = (FIG4A, FIG4B, FIG5, FIG6, FIG7, FIG8, *TABLES, JOINS, DEVICES)
LABORATORY = (REWARDS, REWARDED, CREDIT, MIXED, CONTROLLERS, CHILDREN, DEVICES_ASKED)


def figures_of(params: Params) -> list[Exhibit]:
    """Returns the paper's figures and tables, and those of the laboratory that a scale is for."""
    return [*FIGURES, *(exhibit for exhibit in (*LABORATORY, DEPTH, DIGITS) if exhibit.needs(params))]


def make_figures(
    params: Params, evaluations: Path, latencies: Path, models: Path, out: Path, metrics: Path
) -> None:
    """Writes ``<name>.{svg,png,csv}`` for each of `figures_of` into the directory `out`, and `metrics`.

    Reads ``evaluations/<stage>/<model>.parquet``, the file `latencies`, and nothing of `models` but the
    metrics and logs of training. What no sweep decoded is left out and named in the caption; a figure of
    which nothing was decoded is left out too. Raises `DataError` if an evaluation is missing or broken.
    """
    evidence, exhibits = read_evidence(params, evaluations, latencies, training=models), figures_of(params)
    with atomic_path(out) as partial:
        partial.mkdir()
        for exhibit in track(exhibits, "figures", len(exhibits), "figure"):
            write_exhibit(exhibit, evidence, partial)
    write_json(metrics, metrics_of(evidence, models))


def metrics_of(evidence: Evidence, models: Path) -> dict[str, float]:
    """Returns what tells two runs apart: each model's training, accuracy and cost, and what RL and APR gain.

    A model that was never run unconditioned is described by its largest condition.
    """
    found: dict[str, float] = {}
    greedy: dict[tuple[str, str], Cell] = {}
    for its in evaluated(evidence.params):
        stage, model = its
        name = {"sft": "loss", "rl": "reward"}[stage]
        found[f"{stage}_{model}_train_{name}"] = read_json(models / str(its) / "metrics.json")[name]
        for temperature, name in ((0.0, "greedy"), (1.0, "T1")):
            conditions = evidence.conditions(model, stage, temperature)
            if not conditions:
                continue
            condition = None if None in conditions else conditions[-1]
            cell = evidence.cells[Key(model, stage, temperature, condition)]
            found[f"{stage}_{model}_accuracy_{name}"] = float(accuracy(cell).mean())
            if temperature == 0:
                greedy[its] = cell
                parallel = evidence.params.traces.spawns(its.method(evidence.params)) > 0
                for column in ("total", "sequential", "children") if parallel else ("total",):
                    found[f"{stage}_{model}_{column}_greedy"] = float(mean(cell, column).mean())
    pairs = {f"apr_minus_sos_plus_{stage}": ((stage, "apr"), (stage, "sos_plus")) for stage in style.STAGES}
    pairs |= {f"rl_minus_sft_{model}": (("rl", model), ("sft", model)) for _, model in greedy}
    for name, (one, other) in pairs.items():
        if one in greedy and other in greedy:
            gain = accuracy(greedy[one]) - accuracy(greedy[other])
            found |= evidence.spread(**{f"{name}_accuracy_greedy": gain})
    return {name: round(value, 6) for name, value in found.items()}
