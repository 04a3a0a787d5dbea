"""Fig 5: APR before and after RL."""

from matplotlib.figure import Figure

from apr.evaluation.results import Cell, Key
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style

CAPTION = ("APR before (pale) and after RL, unconditioned: greedy, and at T = 1 as RL samples it. Below the "
           "bars: the change, paired by problem.")
TEMPERATURES = {0.0: "greedy", 1.0: "T = 1"}
QUANTITIES = {
    "accuracy": accuracy,
    "total tokens": lambda cell: mean(cell, "total"),
    "tokens per sequence": lambda cell: (cell.total / cell.threads).mean(axis=1),
    "children": lambda cell: mean(cell, "children"),
}
FORMATS = {"accuracy": (100, ".1f"), "total tokens": (1, ",.0f"), "tokens per sequence": (1, ",.0f"),
           "children": (1, ".1f")}  # fmt: skip


def rows(evidence: Evidence) -> list[Row]:
    """A row per temperature, quantity and stage, and one for the change where both stages are there."""
    found = []
    for temperature in TEMPERATURES:
        keys = {stage: Key("apr", stage, temperature) for stage in style.STAGES}
        cells: dict[str, Cell] = {stage: cell for stage, key in keys.items() if (cell := evidence.cell(key))}
        for quantity, values in QUANTITIES.items():
            start = {"temperature": temperature, "quantity": quantity}
            for stage, cell in cells.items():
                row = start | {"stage": stage, "problems": len(cell.problems)}
                found.append(row | evidence.spread("value", values(cell)))
            if len(cells) == 2:
                row = start | {"stage": "change", "problems": len(cells["rl"].problems)}
                found.append(row | evidence.change("value", values(cells["rl"]), values(cells["sft"])))
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(QUANTITIES), width=8.4, height=2.9)
    for axes, quantity in zip(panels, QUANTITIES, strict=True):
        scale, form = FORMATS[quantity]
        labels = []
        for group, (temperature, label) in enumerate(TEMPERATURES.items()):
            shown = {row["stage"]: row for row in rows
                     if (row["quantity"], row["temperature"]) == (quantity, temperature)}  # fmt: skip
            for place, stage in enumerate(style.STAGES):
                if stage in shown:
                    style.draw_bar(axes, group + 0.38 * place - 0.19, 0.34, shown[stage], "value",
                                   style.COLOURS["apr"])  # fmt: skip
            if "change" in shown:
                by, *bounds = (scale * shown["change"][f"value{end}"] for end in ("", "_low", "_high"))
                label += f"\n{by:+z{form}}\n[{bounds[0]:+z{form}}, {bounds[1]:+z{form}}]"
            labels.append(label)
        axes.set_xticks(range(len(labels)), labels, size=7)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_title(quantity)
        if quantity == "accuracy":
            style.percent_axis(axes, "")
        before, after = (format(scale * value, form) for value in paper.FIG5[quantity])
        axes.set_xlabel(f"paper, greedy: {before} → {after}", size=7, color=style.FAINT)
    return figure
