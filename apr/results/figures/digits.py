"""Products by the number of digits, serial and with a child for each, beyond what was trained on too."""

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results.digits import digits_of, trained_digits
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

SHOWN = {
    "serial, SFT": Key("serial", "sft", 0.0), "parallel, SFT": Key("parallel", "sft", 0.0),
    "parallel, SFT and RL": Key("parallel", "rl", 0.0),
}  # fmt: skip
PANELS = {"accuracy": "accuracy", "sequential": "tokens one after another", "total": "total tokens"}
LOOKS = {"marker": "."}


def digits_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per model and number of digits; `trained` is 1 for those that were trained on."""
    found: list[Row] = []
    least, most = trained_digits(evidence.params)
    for name, key in SHOWN.items():
        if (cell := evidence.cell(key)) is None:
            continue
        sizes = digits_of(evidence.params, cell)
        for size in sorted({*sizes.tolist()}):
            own = sizes == size
            counts = {count: mean(cell, count)[own] for count in ("sequential", "total", "children")}
            found.append({"series": name, "digits": size, "trained": int(least <= size <= most)}
                         | evidence.measured(accuracy=accuracy(cell)[own], **counts))  # fmt: skip
    return found


def draw_digits(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(PANELS), width=8.4, height=3.2)
    names, colours = dict.fromkeys(row["series"] for row in rows), list(style.COLOURS.values())
    for axes, (column, label) in zip(panels, PANELS.items(), strict=True):
        for name, colour in zip(names, colours, strict=False):
            style.draw_series(axes, rows, "digits", column,
                              style.Series(name, {"series": name}, colour, LOOKS))  # fmt: skip
        last = max(row["digits"] for row in rows if row["trained"])
        axes.axvline(last + 0.5, color=style.FAINT, linewidth=0.8, linestyle=":", zorder=0)
        axes.set_title(label)
        axes.set_xlabel("digits of each number")
        axes.set_ylim(bottom=0)
    style.percent_axis(panels[0], "")
    style.legend_above(figure)
    return figure


DIGITS = Exhibit("digits", digits_rows, draw_digits, """Products of two numbers, greedy, by their digits: long
    multiplication, and with a child for each digit of the second number. Right of the dotted line are more
    digits than were trained on. For each number of digits at least""",
    lambda params: params.task == "multiplication")
