"""Figure 6: accuracy against sequential tokens and against latency."""

import numpy as np
from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

BEFORE, AFTER = {"markerfacecolor": "white"}, {"linestyle": "none"}
SERIES = [style.Series(label, {"model": model, "stage": stage, "join": join}, style.COLOURS[model],
                       {"marker": marker} | (BEFORE if stage == "sft" else AFTER))
          for label, model, stage, join, marker in (
    ("SoS+, SFT", "sos_plus", "sft", "all", "s"), ("SoS+, RL", "sos_plus", "rl", "all", "s"),
    ("APR, SFT", "apr", "sft", "all", "o"), ("APR, SFT, first success", "apr", "sft", "any", "^"),
    ("APR, RL", "apr", "rl", "all", "o"), ("APR held, RL", "apr_max", "rl", "all", "o"))]  # fmt: skip
PANELS = {"sequential": "sequential tokens per problem", "latency": "seconds per problem"}


def rows(evidence: Evidence) -> list[Row]:
    """Returns a row per model, stage, condition and kind of join that was decoded greedily."""
    found = []
    for model, stage, join in (series.where.values() for series in SERIES):
        for condition in evidence.conditions(model, stage, 0.0, join):
            cell = evidence.cells[key := Key(model, stage, 0.0, condition, join)]
            counts = {name: mean(cell, name) for name in ("sequential", "total")}
            found.append({"model": model, "stage": stage, "join": join, "condition": condition}
                         | evidence.measured(accuracy=accuracy(cell), **counts) | latency(evidence, key))
    return found


def latency(evidence: Evidence, key: Key) -> Row:
    """Returns columns `latency` (seconds per problem, with interval), `latency_p50`, `latency_p95`."""
    if not (timed := evidence.latency(key)):
        return dict.fromkeys(("latency", "latency_low", "latency_high", "latency_p50", "latency_p95"))
    tails = {f"latency_{tail}": evidence.latency(key, tail)["seconds"] for tail in ("p50", "p95")}
    return evidence.spread(latency=np.array([row["seconds"] for row in timed])) | tails


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(2, width=8.4, height=3.7)
    for axes, (x, label) in zip(panels, PANELS.items(), strict=True):
        for series in SERIES:
            style.draw_series(axes, rows, x, "accuracy", series,
                              lambda row: "u" if row["condition"] is None else row["condition"])
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        style.percent_axis(axes)
    style.mark_paper(panels[1], paper.FIG6, notes)
    style.legend_above(figure)
    return figure


FIG6 = Exhibit("fig6", rows, draw, """Greedy accuracy against sequential tokens (the longest chain of
    dependent decoding) and against latency (batch size 1, mean over the problems that were timed).
    Numbers: tokens or children asked for; u: unconditioned. First success: a parent goes on with the
    first child that returns a solution, and its siblings are cancelled.""")
