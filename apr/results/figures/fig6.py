"""Figure 6: accuracy against sequential tokens and against latency."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit
from apr.results.figures.labels import label_mark

SERIES = (("sos_plus", "sft", "all"), ("sos_plus", "rl", "all"), ("apr", "sft", "all"), ("apr", "sft", "any"),
          ("apr", "rl", "all"), ("apr_max", "rl", "all"))  # fmt: skip
LABELS = {"sos_plus": "SoS+", "apr": "APR", "apr_max": "APR held"}
AXES = {"sequential": "sequential tokens per problem", "latency": "seconds per problem"}


def rows(evidence: Evidence) -> list[Row]:
    """Returns a row per model, stage, condition and kind of join that was decoded greedily."""
    found = []
    for model, stage, join in SERIES:
        for condition in evidence.conditions(model, stage, 0.0, join):
            cell = evidence.cells[key := Key(model, stage, 0.0, condition, join)]
            named = {"model": model, "stage": stage, "join": join, "condition": condition}
            counts = {name: mean(cell, name) for name in ("sequential", "total")}
            row = named | evidence.measured(accuracy=accuracy(cell), **counts)
            found.append(row | latency(evidence, key))
    return found


def latency(evidence: Evidence, key: Key) -> Row:
    """Returns columns `latency` (seconds per problem, with interval), `latency_p50`, `latency_p95`."""
    if not (timed := evidence.latency(key)):
        return dict.fromkeys(("latency", "latency_low", "latency_high", "latency_p50", "latency_p95"))
    tails = {f"latency_{tail}": evidence.latency(key, tail)["seconds"] for tail in ("p50", "p95")}
    return evidence.spread(latency=np.array([row["seconds"] for row in timed])) | tails


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(2, width=8.4, height=3.7)
    for axes, (x, label) in zip(panels, AXES.items(), strict=True):
        for series in SERIES:
            _draw_series(axes, [row for row in rows if row[x] is not None
                                and (row["model"], row["stage"], row["join"]) == series], x)  # fmt: skip
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        style.percent_axis(axes)
    style.mark_paper(panels[1], paper.FIG6, notes)
    handles, labels = panels[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside upper center", ncols=len(SERIES) // 2)
    return figure


def _draw_series(axes: Axes, shown: list[Row], x: str) -> None:
    """Joins what was asked for by a line, before RL; what was decoded unconditioned stands beside it."""
    for asked in (True, False):
        marks = [row for row in shown if (row["condition"] is not None) == asked]
        if not marks:
            continue
        model, stage, join = (marks[0][name] for name in ("model", "stage", "join"))
        look: dict[str, Any] = {"marker": "s" if model == "sos_plus" else "o" if join == "all" else "^"}
        look |= {"markerfacecolor": "white"} if stage == "sft" else {"linestyle": "none"}
        look["label"] = f"{LABELS[model]}, {style.STAGES[stage]}{', first success' if join == 'any' else ''}"
        style.draw_curve(axes, marks, x, "accuracy", style.COLOURS[model], **look)
        for row in marks:
            text = row["condition"] if asked else "u"
            label_mark(axes, text, row[x], row["accuracy"], style.COLOURS[model])


FIG6 = Exhibit("fig6", rows, draw, """Greedy accuracy against sequential tokens (the longest chain of
    dependent decoding) and against latency (batch size 1, mean over the problems that were timed).
    Numbers: tokens or children asked for; u: unconditioned. First success: a parent goes on with the
    first child that returns a solution, and its siblings are cancelled.""")
