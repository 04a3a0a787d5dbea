"""Accuracy against tokens before RL: Figures 4a and 8, of all threads; Figure 4b, of the window."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.evaluation.statistics import cons_at, pass_at, solved_within
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

SAMPLES = 8
APR, CONS, PASS = "APR, children asked for", "SoS+ cons@n", "SoS+ pass@n"
SERIES = [style.Series(name, {"series": name}, style.COLOURS[method], {"marker": marker, "linestyle": line})
          for name, method, marker, line in ((APR, "apr", "o", "-"), (CONS, "sos_plus", "s", "-"),
                                             (PASS, "sos_plus", "^", "--"))]  # fmt: skip


def scaling_rows(evidence: Evidence, temperatures: Sequence[float]) -> list[Row]:
    """Returns a row per temperature, series and `amount`, the number of children or of samples."""
    found: list[Row] = []

    def add(temperature: float, series: str, amount: int, **measured: np.ndarray) -> None:
        row = {"temperature": temperature, "series": series, "amount": amount}
        found.append(row | evidence.measured(**measured))

    for at in temperatures:
        for children in range(evidence.params.grammar.max_children + 1):
            if cell := evidence.cell(Key("apr", "sft", at, children)):
                add(at, APR, children, tokens=mean(cell, "total"), accuracy=accuracy(cell))
        if cell := evidence.cell(Key("sos_plus", "sft", at)):
            if cell.samples < SAMPLES:
                evidence.missing.append(f"sft/sos_plus T={at:g} samples {cell.samples + 1} to {SAMPLES}")
            for series, solved in ((CONS, partial(cons_at, labels=cell.votes)), (PASS, pass_at)):
                for n in range(1, min(cell.samples, SAMPLES) + 1):
                    add(at, series, n, tokens=n * mean(cell, "total"), accuracy=solved(n, right=cell.strict))
    return found


def draw_scaling(rows: list[Row], notes: list[str], marks: Mapping[str, float]) -> Figure:
    """Draws a panel per temperature, and in it a line per series by tokens, whose ends are labelled.

    An amount out of the order of amounts is labelled too, and noted.
    """
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    figure, panels = style.new_figure(len(temperatures), width=9.0 if len(temperatures) > 1 else 6.2)
    for axes, temperature in zip(panels, temperatures, strict=True):
        axes.sharey(panels[0])
        for series in SERIES:
            where = {"temperature": temperature, **series.where}.items()
            shown = sorted((row for row in rows if where <= row.items()), key=lambda row: row["tokens"])
            swapped = [(a, b) for a, b in pairwise(row["amount"] for row in shown) if a > b]
            for less, more in swapped:
                why = ", as no trace spawns a single child" if more == 1 else ""
                notes.append(f"Asked for {more} APR decodes more than for {less}{why}.")
            named = {row["amount"]: row["amount"] for row in (*shown[:1], *shown[-1:])}
            named |= {amount: amount for pair in swapped for amount in pair}
            style.draw_series(axes, shown, "tokens", "accuracy", series,
                              lambda row, named=named: named.get(row["amount"]))  # type: ignore[misc]
        axes.set_title(f"T = {temperature:g}")
        axes.margins(x=0.08)
        axes.set_xlim(left=0)
        axes.set_xlabel("total tokens per problem")
    style.percent_axis(panels[0])
    style.mark_paper(panels[0], marks, notes)
    style.legend_above(figure)
    return figure


FIG4A = Exhibit("fig4a", partial(scaling_rows, temperatures=(1.0,)), partial(draw_scaling, marks=paper.FIG4A),
    """Accuracy against mean total tokens per problem after SFT, T = 1. APR is asked for 0 to 10
    children; SoS+ decodes n samples (cons@n: majority vote, pass@n: any is right; both over all
    n-subsets).""")
FIG8 = Exhibit("fig8", partial(scaling_rows, temperatures=(0.1, 0.5, 1.0)), partial(draw_scaling, marks={}),
    """As Fig 4a, by temperature of sampling: APR asked for 0 to 10 children, SoS+ with n samples,
    after SFT.""")


CHILDREN = (3, 6, 10)
STEPS = 16
COLUMNS = ("window", "accuracy", "accuracy_low", "accuracy_high")
LINES = ("-", "--", ":", "-.")


def windows_rows(evidence: Evidence) -> list[Row]:
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


def draw_windows(rows: list[Row], notes: list[str]) -> Figure:
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


FIG4B = Exhibit("fig4b", windows_rows, draw_windows, """Cumulative accuracy after SFT, greedy: a solved
    problem counts only where its longest thread fits the window. Paper: APR(10) about 20 percentage
    points over SoS+ at the full window.""")
