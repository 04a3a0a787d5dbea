"""Fig 4b: cumulative accuracy against the context window, before RL."""

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.evaluation.statistics import solved_within
from apr.results.evidence import Evidence, Row
from apr.results.figures import style

CAPTION = ("Cumulative accuracy after SFT, greedy: a solved problem counts only where its longest thread "
           "fits the window. "
           "Paper: APR(10) about 20 points over SoS+ at the full window.")
CHILDREN = (3, 6, 10)
STEPS = 16
LINES = ("-", "--", ":", "-.")


def rows(evidence: Evidence) -> list[Row]:
    largest = evidence.params.grammar.window
    windows = [largest * step // STEPS for step in range(1, STEPS + 1)]
    budgets = [amount for amount in evidence.conditions("sos_plus", "sft", 0.0) if amount is not None]
    if not budgets:
        evidence.missing.append("sft/sos_plus conditioned on tokens T=0")
    wanted = [("apr", amount, f"APR, {amount} children") for amount in CHILDREN]
    wanted += [("sos_plus", amount, f"SoS+, {amount} tokens") for amount in budgets]
    return [
        {"series": series, "method": method, "condition": amount, "window": window}
        | {"problems": len(cell.problems)}
        | evidence.spread("accuracy", solved_within(window, cell.strict, cell.longest))
        for method, amount, series in wanted
        if (cell := evidence.cell(Key(method, "sft", 0.0, amount)))
        for window in windows
    ]


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, (axes,) = style.new_figure()
    seen: dict[str, int] = {"apr": 0, "sos_plus": 0}
    for series in dict.fromkeys(row["series"] for row in rows):
        points = [row for row in rows if row["series"] == series]
        method = points[0]["method"]
        colour = style.COLOURS[method]
        windows = [row["window"] for row in points]
        axes.plot(windows, [row["accuracy"] for row in points], color=colour, label=series,
                  linestyle=LINES[seen[method] % len(LINES)], clip_on=False)
        axes.fill_between(windows, [row["accuracy_low"] for row in points],
                          [row["accuracy_high"] for row in points], color=colour, alpha=0.1, linewidth=0)
        seen[method] += 1
    axes.set_xlabel("context window (tokens)")
    style.percent_axis(axes, "cumulative accuracy")
    axes.legend(loc="upper left")
    return figure
