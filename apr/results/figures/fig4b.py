"""Figure 4b: cumulative accuracy against the context window, before RL."""

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.evaluation.statistics import solved_within
from apr.results.evidence import Evidence, Row
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

CHILDREN = (3, 6, 10)
STEPS = 16
COLUMNS = ("window", "accuracy", "accuracy_low", "accuracy_high")
LINES = ("-", "--", ":", "-.")


def rows(evidence: Evidence) -> list[Row]:
    """Returns a row per model and condition, the series, and window."""
    largest = evidence.params.grammar.window
    budgets = [amount for amount in evidence.conditions("sos_plus", "sft", 0.0) if amount is not None]
    if not budgets:
        evidence.missing.append("sft/sos_plus conditioned on tokens T=0")
    wanted = [("apr", amount, f"APR, {amount} children") for amount in CHILDREN]
    wanted += [("sos_plus", amount, f"SoS+, {amount} tokens") for amount in budgets]
    return [
        {"series": series, "method": method, "condition": amount, "window": window}
        | evidence.measured(accuracy=solved_within(window, cell.strict, cell.longest))
        for method, amount, series in wanted
        if (cell := evidence.cell(Key(method, "sft", 0.0, amount)))
        for window in (largest * step // STEPS for step in range(1, STEPS + 1))
    ]


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, (axes,) = style.new_figure()
    for method in ("apr", "sos_plus"):
        series = dict.fromkeys(row["series"] for row in rows if row["method"] == method)
        for place, name in enumerate(series):
            shown = [row for row in rows if row["series"] == name]
            window, accuracy, low, high = ([row[column] for row in shown] for column in COLUMNS)
            look = {"color": style.COLOURS[method], "label": name, "linestyle": LINES[place % len(LINES)]}
            axes.plot(window, accuracy, clip_on=False, **look)
            axes.fill_between(window, low, high, color=style.COLOURS[method], alpha=0.1, linewidth=0)
    axes.set_xlabel("context window (tokens)")
    style.percent_axis(axes, "cumulative accuracy")
    axes.legend(loc="upper left")
    return figure


FIG4B = Exhibit("fig4b", rows, draw, """Cumulative accuracy after SFT, greedy: a solved problem counts
    only where its longest thread fits the window. Paper: APR(10) about 20 percentage points over SoS+ at
    the full window.""")
