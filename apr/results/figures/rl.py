"""What RL changes: Figures 5 and 7."""

from collections.abc import Callable
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from apr.evaluation.results import Cell, Key
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

SAMPLED = {0.0: "greedy", 1.0: "T = 1"}
QUANTITIES: dict[str, tuple[Callable[[Cell], np.ndarray], int, str]] = {
    "accuracy": (accuracy, 100, ".1f"),
    "total tokens": (lambda cell: mean(cell, "total"), 1, ",.0f"),
    "tokens per sequence": (lambda cell: (cell.total / cell.threads).mean(axis=1), 1, ",.0f"),
    "children": (lambda cell: mean(cell, "children"), 1, ".1f"),
}
"""By name: values of the problems of a cell, and how they are printed: factor and format."""


def fig5_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per temperature, quantity and stage, and one for the change from stage to stage."""
    found = []
    for temperature in SAMPLED:
        cells = {stage: evidence.cell(Key("apr", stage, temperature)) for stage in style.STAGES}
        for name, (values_of, _, _) in QUANTITIES.items():
            values = {stage: values_of(cell) for stage, cell in cells.items() if cell}
            if len(values) == 2:
                values["change"] = values["rl"] - values["sft"]
            found += [{"temperature": temperature, "quantity": name, "stage": stage}
                      | evidence.measured(value=value) for stage, value in values.items()]  # fmt: skip
    return found


def draw_fig5(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(QUANTITIES), width=8.4, height=2.9)
    for axes, (name, (_, scale, form)) in zip(panels, QUANTITIES.items(), strict=True):
        labels = []
        for place, (temperature, label) in enumerate(SAMPLED.items()):
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


FIG5 = Exhibit("fig5", fig5_rows, draw_fig5, """APR before (pale) and after RL, unconditioned: greedy,
    and at T = 1 as RL samples it. Below the bars: the change, paired by problem.""")


RUNS = {"SoS+": ("sos_plus", "sos_plus"), "APR": ("apr", "apr"), "APR held": ("apr", "apr_max")}
"""By name: the model before and the policy after RL."""
PANELS = (("accuracy", 0.0), ("accuracy", 1.0), ("tokens", 1.0))
"""Quantity and temperature; at T = 1 the policy is the one that RL trains."""


def fig7_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per temperature, run and stage; after RL `gain` is the paired change in accuracy."""
    found = []
    for temperature, (run, (method, policy)) in product((0.0, 1.0), RUNS.items()):
        condition = evidence.params.grammar.max_children if run == "APR held" else None
        before = evidence.cell(Key(method, "sft", temperature, condition))
        after = evidence.cell(Key(policy, "rl", temperature, condition))
        for stage, cell in (("sft", before), ("rl", after)):
            if cell is None:
                continue
            row = {"temperature": temperature, "run": run, "model": policy, "stage": stage}
            row |= evidence.measured(accuracy=accuracy(cell), tokens=mean(cell, "total"))
            row |= dict.fromkeys(("gain", "gain_low", "gain_high"))
            if stage == "rl" and before is not None:
                row |= evidence.spread(gain=accuracy(cell) - accuracy(before))
            found.append(row)
    return found


def draw_fig7(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(PANELS), width=8.4, height=3.2)
    for axes, (name, temperature) in zip(panels, PANELS, strict=True):
        for place, (run, (_, policy)) in enumerate(RUNS.items()):
            shown = [row for row in rows if (row["run"], row["temperature"]) == (run, temperature)]
            style.draw_bars(axes, place, shown, name, style.COLOURS[policy])
        axes.set_xticks(range(len(RUNS)), list(RUNS), size=8)
        axes.set_title(f"T = {temperature:g}" if temperature else "greedy")
        if name == "accuracy":
            style.percent_axis(axes)
    panels[2].set_ylabel("total tokens per problem")
    for place, run in enumerate(RUNS):
        for offset, value in zip(style.PAIRED, paper.FIG7[run], strict=True):
            if value <= panels[0].get_ylim()[1]:
                panels[0].plot(place + offset, value, marker="D", markersize=4, color=style.FAINT, alpha=0.8)
    changes = (f"{run} {before:.1%} → {after:.1%}" for run, (before, after) in paper.FIG7.items())
    notes.append(f"Paper: {', '.join(changes)}.")
    return figure


FIG7 = Exhibit("fig7", fig7_rows, draw_fig7, """Accuracy and total tokens before (pale) and after RL.
    Held: every prompt asks for the largest number of children. Diamonds: the paper's accuracies.""")
