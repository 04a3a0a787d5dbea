"""Whether having learnt to spawn helps the serial form: a model of both forms beside one of that form."""

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit
from apr.results.figures.paired import TEMPERATURES

PAIRS = {"sft": ("sos_plus", "mixed"), "rl": ("serial", "mixed_serial")}
"""By stage: the model that knows the serial form alone, and the one that knows both."""
LOOKS = {"sft": {"markerfacecolor": "white", "linestyle": "--"}, "rl": {}}


def mixed_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per temperature, stage, budget of tokens asked for, and model; `gain` of the one that
    knows both forms is in accuracy over the other's, paired by problem."""
    found = []
    for temperature in TEMPERATURES:
        for stage, (alone, both) in PAIRS.items():
            budgets = [amount for amount in evidence.conditions(alone, stage, temperature)
                       if amount is not None]  # fmt: skip
            for amount in budgets:
                cells = {name: evidence.cell(Key(name, stage, temperature, amount)) for name in (alone, both)}
                before = cells[alone]
                for name, cell in cells.items():
                    if cell is None or before is None:
                        continue
                    row = {"temperature": temperature, "stage": stage, "model": name, "condition": amount}
                    row |= evidence.measured(accuracy=accuracy(cell), tokens=mean(cell, "total"))
                    found.append(row | evidence.spread(gain=accuracy(cell) - accuracy(before)))
    return found


def draw_mixed(rows: list[Row], notes: list[str]) -> Figure:
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    figure, panels = style.new_figure(len(temperatures), width=8.4 if len(temperatures) > 1 else 5.6)
    for axes, temperature in zip(panels, temperatures, strict=True):
        for stage, models in PAIRS.items():
            drawn = zip(models, ("sos_plus", "apr"), ("serial alone", "both"), strict=True)
            for name, colour, label in drawn:
                where = {"temperature": temperature, "stage": stage, "model": name}
                series = style.Series(f"{label}, {style.STAGES[stage]}", where, style.COLOURS[colour],
                                      LOOKS[stage])  # fmt: skip
                style.draw_series(axes, rows, "condition", "accuracy", series)
        axes.set_title(TEMPERATURES[temperature])
        axes.set_xlabel("tokens asked for")
        style.percent_axis(axes)
    style.legend_above(figure, columns=4)
    return figure


MIXED = Exhibit("mixed", mixed_rows, draw_mixed, """Accuracy of the serial form by the budget of tokens that a
    prompt asks for: of models that know no other form (SoS+), and of models that have learnt to spawn too,
    from as many serial tokens. RL asks for all tokens of the window.""",
    lambda params: {name for pair in PAIRS.values() for name in pair}
    <= {*params.traces.methods, *params.rl.policies})  # fmt: skip
