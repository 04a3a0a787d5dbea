"""Figure 7: what RL does to SoS+, to APR, and to APR held at the largest number of children."""

from itertools import product

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

RUNS = {"SoS+": ("sos_plus", "sos_plus"), "APR": ("apr", "apr"), "APR held": ("apr", "apr_max")}
"""By name: the model before and the policy after RL."""
PANELS = (("accuracy", 0.0), ("accuracy", 1.0), ("tokens", 1.0))
"""Quantity and temperature; at T = 1 the policy is the one that RL trains."""


def rows(evidence: Evidence) -> list[Row]:
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


def draw(rows: list[Row], notes: list[str]) -> Figure:
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


FIG7 = Exhibit("fig7", rows, draw, """Accuracy and total tokens before (pale) and after RL. Held: every
    prompt asks for the largest number of children. Diamonds: the paper's accuracies.""")
