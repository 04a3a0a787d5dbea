"""Fig 6: accuracy against sequential tokens and against latency."""

from matplotlib.figure import Figure

from apr.eval.results import Key
from apr.figures import paper, style
from apr.figures.evidence import Evidence, Row, accuracy, mean

CAPTION = ("Greedy accuracy against sequential tokens (the longest chain of dependent decoding) and against "
           "latency (batch size 1, mean over the problems that were timed). Numbers: tokens or children "
           "asked for; u: unconditioned.")
JOBS = (("sos_plus", "sft"), ("sos_plus", "rl"), ("apr", "sft"), ("apr", "rl"), ("apr_max", "rl"))
LABELS = {"sos_plus": "SoS+", "apr": "APR", "apr_max": "APR held"}
AXES = {"sequential": "sequential tokens per problem", "latency": "seconds per problem"}


def rows(evidence: Evidence) -> list[Row]:
    """A row per model, stage and condition that was decoded greedily."""
    found = []
    for model, stage in JOBS:
        for condition in evidence.conditions(model, stage, 0.0):
            cell = evidence.cells[Key(model, stage, 0.0, condition)]
            row = {"model": model, "stage": stage, "condition": condition, "problems": len(cell.problems)}
            row |= evidence.spread("accuracy", accuracy(cell))
            row |= evidence.spread("sequential", mean(cell, "sequential"))
            found.append(row | evidence.latency(model, stage, condition))
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(2, width=8.4, height=3.5)
    for axes, (x, label) in zip(panels, AXES.items(), strict=True):
        for model, stage in JOBS:
            points = [row for row in rows if (row["model"], row["stage"]) == (model, stage)]
            points = [row for row in points if row[x] is not None]
            colour = style.COLOURS[model]
            look = {"linestyle": "-", "markerfacecolor": "white"} if stage == "sft" else {"linestyle": "none"}
            look["marker"] = "s" if model == "sos_plus" else "o"
            free = [row for row in points if row["condition"] is None]
            style.draw_points(axes, [row for row in points if row not in free], x, "accuracy", colour, **look)
            style.draw_points(axes, free, x, "accuracy", colour, **look)
            if points:
                axes.plot([], [], color=colour, label=f"{LABELS[model]}, {style.STAGES[stage]}", **look)
            for row in points:
                text = "u" if row["condition"] is None else str(row["condition"])
                axes.annotate(text, (row[x], row["accuracy"]), xytext=(4, 4), textcoords="offset points",
                              size=7, color=colour)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        style.percent_axis(axes)
    style.mark_paper(panels[1], paper.FIG6, notes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(JOBS))
    return figure
