"""Fig 6: accuracy against sequential tokens and against latency."""

from typing import Any

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style

CAPTION = ("Greedy accuracy against sequential tokens (the longest chain of dependent decoding) and against "
           "latency (batch size 1, mean over the problems that were timed). Numbers: tokens or children "
           "asked for; u: unconditioned. First success: a parent goes on with the first child that returns a "
           "solution, and its siblings are cancelled.")
SERIES = (("sos_plus", "sft", "all"), ("sos_plus", "rl", "all"), ("apr", "sft", "all"), ("apr", "sft", "any"),
          ("apr", "rl", "all"), ("apr_max", "rl", "all"))  # fmt: skip
LABELS = {"sos_plus": "SoS+", "apr": "APR", "apr_max": "APR held"}
AXES = {"sequential": "sequential tokens per problem", "latency": "seconds per problem"}


def rows(evidence: Evidence) -> list[Row]:
    """A row per model, stage, condition and kind of join that was decoded greedily."""
    found = []
    for model, stage, join in SERIES:
        for condition in evidence.conditions(model, stage, 0.0, join):
            cell = evidence.cells[Key(model, stage, 0.0, condition, join)]
            row = {"model": model, "stage": stage, "join": join, "condition": condition}
            row |= {"problems": len(cell.problems)} | evidence.spread("accuracy", accuracy(cell))
            row |= evidence.spread("sequential", mean(cell, "sequential"))
            row |= evidence.spread("total", mean(cell, "total"))
            found.append(row | evidence.latency(model, stage, condition, join))
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(2, width=8.4, height=3.7)
    for axes, (x, label) in zip(panels, AXES.items(), strict=True):
        for model, stage, join in SERIES:
            named = {"model": model, "stage": stage, "join": join}.items()
            points = [row for row in rows if named <= row.items() and row[x] is not None]
            colour = style.COLOURS[model]
            look: dict[str, Any] = {"linestyle": "none"}
            if stage == "sft":
                look = {"linestyle": "-", "markerfacecolor": "white"}
            look["marker"] = "s" if model == "sos_plus" else "o" if join == "all" else "^"
            free = [row for row in points if row["condition"] is None]
            style.draw_points(axes, [row for row in points if row not in free], x, "accuracy", colour, **look)
            style.draw_points(axes, free, x, "accuracy", colour, **look)
            if points:
                first = ", first success" if join == "any" else ""
                name = f"{LABELS[model]}, {style.STAGES[stage]}{first}"
                axes.plot([], [], color=colour, label=name, **look)
            for row in points:
                text = "u" if row["condition"] is None else str(row["condition"])
                axes.annotate(text, (row[x], row["accuracy"]), xytext=(4, 4), textcoords="offset points",
                              size=7, color=colour)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        style.percent_axis(axes)
    style.mark_paper(panels[1], paper.FIG6, notes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(SERIES) // 2)
    return figure
