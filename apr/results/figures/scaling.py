"""Figures 4a and 8: accuracy against mean total tokens, before RL."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.evaluation.statistics import cons_at, pass_at
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit
from apr.results.figures.labels import label_mark

SAMPLES = 8
APR, CONS, PASS = "APR, children asked for", "SoS+ cons@n", "SoS+ pass@n"
LOOKS = {APR: ("apr", "o", "-"), CONS: ("sos_plus", "s", "-"), PASS: ("sos_plus", "^", "--")}


def rows(evidence: Evidence, temperatures: Sequence[float]) -> list[Row]:
    """Returns a row per temperature, series and `amount`, the number of children or of samples."""
    return [row for temperature in temperatures for row in _rows(evidence, temperature)]


def _rows(evidence: Evidence, temperature: float) -> list[Row]:
    found = []

    def add(series: str, amount: int, **measured: np.ndarray) -> None:
        named = {"temperature": temperature, "series": series, "amount": amount}
        found.append(named | evidence.measured(**measured))

    for children in range(evidence.params.grammar.max_children + 1):
        if cell := evidence.cell(Key("apr", "sft", temperature, children)):
            add(APR, children, tokens=mean(cell, "total"), accuracy=accuracy(cell))
    if cell := evidence.cell(Key("sos_plus", "sft", temperature)):
        if cell.samples < SAMPLES:
            evidence.missing.append(f"sft/sos_plus T={temperature:g} samples {cell.samples + 1} to {SAMPLES}")
        amounts = range(1, min(cell.samples, SAMPLES) + 1)
        for n in amounts:
            add(CONS, n, tokens=n * mean(cell, "total"), accuracy=cons_at(n, cell.votes, cell.strict))
        for n in amounts:
            add(PASS, n, tokens=n * mean(cell, "total"), accuracy=pass_at(n, cell.strict))
    return found


def draw(rows: list[Row], notes: list[str], marks: Mapping[str, float]) -> Figure:
    """Draws a panel per temperature, and in it a line per series, in the order of tokens."""
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    figure, panels = style.new_figure(len(temperatures), width=9.0 if len(temperatures) > 1 else 6.6)
    for axes, temperature in zip(panels, temperatures, strict=True):
        axes.sharey(panels[0])
        for series in LOOKS:
            shown = [row for row in rows if (row["temperature"], row["series"]) == (temperature, series)]
            if shown:
                _draw_series(axes, sorted(shown, key=lambda row: row["tokens"]), notes)
        axes.set_title(f"T = {temperature:g}")
        axes.set_xlim(left=0)
        axes.set_xlabel("total tokens per problem")
    style.percent_axis(panels[0])
    style.mark_paper(panels[0], marks, notes)
    handles = [axes.get_legend_handles_labels() for axes in panels]
    figure.legend(*max(handles, key=lambda found: len(found[0])), loc="outside upper center", ncols=3)
    return figure


def _draw_series(axes: Axes, shown: list[Row], notes: list[str]) -> None:
    """Labels the ends with the amount, and what comes out of the order of amounts, which is noted too."""
    method, marker, line = LOOKS[series := shown[0]["series"]]
    style.draw_curve(axes, shown, "tokens", "accuracy", style.COLOURS[method], marker=marker, linestyle=line,
                     label=series)  # fmt: skip
    swapped = [(a, b) for a, b in pairwise(shown) if a["amount"] > b["amount"]]
    for row in {row["amount"]: row for row in (shown[0], shown[-1], *sum(swapped, ()))}.values():
        label_mark(axes, row["amount"], row["tokens"], row["accuracy"], style.COLOURS[method])
    for less, more in swapped:
        why = ", as no trace spawns a single child" if more["amount"] == 1 else ""
        notes.append(f"Asked for {more['amount']} APR decodes more than for {less['amount']}{why}.")


FIG4A = Exhibit("fig4a", partial(rows, temperatures=(1.0,)), partial(draw, marks=paper.FIG4A), """Accuracy
    against mean total tokens per problem after SFT, T = 1. APR is asked for 0 to 10 children; SoS+
    decodes n samples (cons@n: majority vote, pass@n: any is right; both over all n-subsets).""")
FIG8 = Exhibit("fig8", partial(rows, temperatures=(0.1, 0.5, 1.0)), partial(draw, marks={}), """As Fig 4a,
    by temperature of sampling: APR asked for 0 to 10 children, SoS+ with n samples, after SFT.""")
