"""Figure 5: APR before and after RL."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from apr.evaluation.results import Cell, Key
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

TEMPERATURES = {0.0: "greedy", 1.0: "T = 1"}


QUANTITIES: dict[str, tuple[Callable[[Cell], np.ndarray], int, str]] = {
    "accuracy": (accuracy, 100, ".1f"),
    "total tokens": (lambda cell: mean(cell, "total"), 1, ",.0f"),
    "tokens per sequence": (lambda cell: (cell.total / cell.threads).mean(axis=1), 1, ",.0f"),
    "children": (lambda cell: mean(cell, "children"), 1, ".1f"),
}
"""By name: values of the problems of a cell, and how they are printed: factor and format."""


def rows(evidence: Evidence) -> list[Row]:
    """Returns a row per temperature, quantity and stage, and one for the change from stage to stage."""
    found = []
    for temperature in TEMPERATURES:
        cells = {stage: evidence.cell(Key("apr", stage, temperature)) for stage in style.STAGES}
        for name, (values_of, _, _) in QUANTITIES.items():
            values = {stage: values_of(cell) for stage, cell in cells.items() if cell}
            if len(values) == 2:
                values["change"] = values["rl"] - values["sft"]
            found += [{"temperature": temperature, "quantity": name, "stage": stage}
                      | evidence.measured(value=value) for stage, value in values.items()]  # fmt: skip
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(QUANTITIES), width=8.4, height=2.9)
    for axes, (name, (_, scale, form)) in zip(panels, QUANTITIES.items(), strict=True):
        labels = []
        for place, (temperature, label) in enumerate(TEMPERATURES.items()):
            shown = [row for row in rows if (row["quantity"], row["temperature"]) == (name, temperature)]
            style.draw_bars(axes, place, shown, "value", style.COLOURS["apr"])
            for row in (row for row in shown if row["stage"] == "change"):
                by, low, high = (f"{scale * row[f'value{end}']:+z{form}}" for end in ("", "_low", "_high"))
                label += f"\n{by}\n[{low}, {high}]"
            labels.append(label)
        axes.set_xticks(range(len(labels)), labels, size=7)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_title(name)
        if name == "accuracy":
            style.percent_axis(axes, "")
        before, after = (format(scale * value, form) for value in paper.FIG5[name])
        axes.set_xlabel(f"paper, greedy: {before} → {after}", size=7, color=style.FAINT)
    return figure


FIG5 = Exhibit("fig5", rows, draw, """APR before (pale) and after RL, unconditioned: greedy, and at T = 1
    as RL samples it. Below the bars: the change, paired by problem.""")
