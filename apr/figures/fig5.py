"""Fig 5: APR before and after RL."""

from matplotlib.figure import Figure

from apr.eval.results import Cell, Key
from apr.figures import paper, style
from apr.figures.evidence import Evidence, Row, accuracy, mean

CAPTION = "APR before and after RL, greedy, unconditioned. Above the bars: the change, paired by problem."
QUANTITIES = {
    "accuracy": accuracy,
    "total tokens": lambda cell: mean(cell, "total"),
    "tokens per sequence": lambda cell: (cell.total / cell.threads).mean(axis=1),
    "children": lambda cell: mean(cell, "children"),
}
FORMATS = {"accuracy": (100, ".1f"), "total tokens": (1, ",.0f"), "tokens per sequence": (1, ",.0f"),
           "children": (1, ".1f")}  # fmt: skip


def rows(evidence: Evidence) -> list[Row]:
    """A row per quantity and stage, and one for the change where both stages are there."""
    keys = {stage: Key("apr", stage, 0.0) for stage in style.STAGES}
    cells: dict[str, Cell] = {stage: cell for stage, key in keys.items() if (cell := evidence.cell(key))}
    found = []
    for quantity, values in QUANTITIES.items():
        for stage, cell in cells.items():
            row = {"quantity": quantity, "stage": stage, "problems": len(cell.problems)}
            found.append(row | evidence.spread("value", values(cell)))
        if len(cells) == 2:
            row = {"quantity": quantity, "stage": "change", "problems": len(cells["rl"].problems)}
            found.append(row | evidence.change("value", values(cells["rl"]), values(cells["sft"])))
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(QUANTITIES), width=8.4, height=2.9)
    for axes, quantity in zip(panels, QUANTITIES, strict=True):
        bars = [row for row in rows if row["quantity"] == quantity and row["stage"] != "change"]
        for place, row in enumerate(bars):
            style.draw_bar(axes, place, 0.62, row, "value", style.COLOURS["apr"])
        axes.set_xticks(range(len(bars)), [style.STAGES[row["stage"]] for row in bars])
        axes.set_xlim(-0.6, 1.6)
        axes.set_title(quantity)
        scale, form = FORMATS[quantity]
        if quantity == "accuracy":
            style.percent_axis(axes, "")
        before, after = (format(scale * value, form) for value in paper.FIG5[quantity])
        axes.set_xlabel(f"paper: {before} → {after}", size=7, color=style.FAINT)
        for row in rows:
            if (row["quantity"], row["stage"]) == (quantity, "change"):
                by, low, high = (scale * row[name] for name in ("value", "value_low", "value_high"))
                axes.annotate(f"{by:+z{form}} [{low:+z{form}}, {high:+z{form}}]", (0.5, 1), size=6.5,
                              xycoords="axes fraction", ha="center", va="top")
                axes.set_ylim(top=axes.get_ylim()[1] * 1.1)
    return figure
