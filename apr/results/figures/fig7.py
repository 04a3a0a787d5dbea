"""Fig 7: what RL does to SoS+, to APR, and to APR held at the largest number of children."""

from itertools import product

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style

CAPTION = ("Accuracy and total tokens before (pale) and after RL. Held: every prompt asks for the largest "
           "number of children. Diamonds: the paper's accuracies.")
HELD = "APR held"
PANELS = (("accuracy", 0.0), ("accuracy", 1.0), ("tokens", 1.0))
"""Quantity and temperature; at T = 1 the policy is the one that RL trains."""


def rows(evidence: Evidence) -> list[Row]:
    """A row per temperature, run and stage; `gain` is the paired change in accuracy, on the rows after RL."""
    most = evidence.params.grammar.max_children
    runs = {"SoS+": ("sos_plus", "sos_plus", None), "APR": ("apr", "apr", None),
            HELD: ("apr", "apr_max", most)}  # fmt: skip
    found = []
    for temperature, (run, (method, policy, condition)) in product((0.0, 1.0), runs.items()):
        before = evidence.cell(Key(method, "sft", temperature, condition))
        after = evidence.cell(Key(policy, "rl", temperature, condition))
        for stage, cell in (("sft", before), ("rl", after)):
            if cell is None:
                continue
            row = {"temperature": temperature, "run": run, "model": policy, "stage": stage}
            row |= {"problems": len(cell.problems)}
            row |= evidence.spread("accuracy", accuracy(cell))
            row |= evidence.spread("tokens", mean(cell, "total"))
            row |= dict.fromkeys(("gain", "gain_low", "gain_high"))
            if stage == "rl" and before is not None:
                row |= evidence.change("gain", accuracy(cell), accuracy(before))
            found.append(row)
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(PANELS), width=8.4, height=3.2)
    runs = list(dict.fromkeys(row["run"] for row in rows))
    for axes, (name, temperature) in zip(panels, PANELS, strict=True):
        for row in (row for row in rows if row["temperature"] == temperature):
            place = runs.index(row["run"]) + (-0.2 if row["stage"] == "sft" else 0.2)
            style.draw_bar(axes, place, 0.36, row, name, style.COLOURS[row["model"]])
        axes.set_xticks(range(len(runs)), runs, size=8)
        axes.set_title(f"T = {temperature:g}" if temperature else "greedy")
        if name == "accuracy":
            style.percent_axis(axes)
    panels[2].set_ylabel("total tokens per problem")
    for place, run in enumerate(runs):
        for offset, value in zip((-0.2, 0.2), paper.FIG7[run], strict=True):
            if value <= panels[0].get_ylim()[1]:
                panels[0].plot(place + offset, value, marker="D", markersize=4, color=style.FAINT, alpha=0.8)
    beyond = [f"{run} {before:.1%} → {after:.1%}" for run, (before, after) in paper.FIG7.items()]
    notes.append(f"Paper: {', '.join(beyond)}.")
    return figure
