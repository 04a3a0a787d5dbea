"""Fig 7: what RL does to SoS+, to APR, and to APR held at the largest number of children."""

from matplotlib.figure import Figure

from apr.eval.results import Key
from apr.figures import paper, style
from apr.figures.evidence import Evidence, Row, accuracy, mean

CAPTION = ("Accuracy and total tokens before (pale) and after RL, greedy. Held: every prompt asks for the "
           "largest number of children. Diamonds: the paper's accuracies.")
HELD = "APR held"


def rows(evidence: Evidence) -> list[Row]:
    """A row per run and stage; `gain` is the paired change in accuracy, on the rows after RL."""
    most = evidence.params.grammar.max_children
    runs = {"SoS+": ("sos_plus", "sos_plus", None), "APR": ("apr", "apr", None),
            HELD: ("apr", "apr_max", most)}  # fmt: skip
    found = []
    for run, (method, policy, condition) in runs.items():
        before = evidence.cell(Key(method, "sft", 0.0, condition))
        after = evidence.cell(Key(policy, "rl", 0.0, condition))
        for stage, cell in (("sft", before), ("rl", after)):
            if cell is None:
                continue
            row = {"run": run, "model": policy, "stage": stage, "problems": len(cell.problems)}
            row |= evidence.spread("accuracy", accuracy(cell))
            row |= evidence.spread("tokens", mean(cell, "total"))
            row |= dict.fromkeys(("gain", "gain_low", "gain_high"))
            if stage == "rl" and before is not None:
                row |= evidence.change("gain", accuracy(cell), accuracy(before))
            found.append(row)
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(2, width=7.4, height=3.3)
    runs = list(dict.fromkeys(row["run"] for row in rows))
    for axes, name in zip(panels, ("accuracy", "tokens"), strict=True):
        for row in rows:
            place = runs.index(row["run"]) + (-0.2 if row["stage"] == "sft" else 0.2)
            style.draw_bar(axes, place, 0.36, row, name, style.COLOURS[row["model"]])
        axes.set_xticks(range(len(runs)), runs)
    style.percent_axis(panels[0])
    panels[1].set_ylabel("total tokens per problem")
    for place, run in enumerate(runs):
        for offset, value in zip((-0.2, 0.2), paper.FIG7[run], strict=True):
            if value <= panels[0].get_ylim()[1]:
                panels[0].plot(place + offset, value, marker="D", markersize=4, color=style.FAINT, alpha=0.8)
    beyond = [f"{run} {before:.1%} → {after:.1%}" for run, (before, after) in paper.FIG7.items()]
    notes.append(f"Paper: {', '.join(beyond)}.")
    return figure
