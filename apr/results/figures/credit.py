"""Which threads are given credit: accuracy at equal rollouts, agreement with what is known for certain."""

from functools import partial
from statistics import fmean

from matplotlib.figure import Figure

from apr.results.evidence import Evidence, Row
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit
from apr.results.figures.paired import TEMPERATURES, paired_rows, rivals

SIGNS = {"same": "as the oracle", "opposite": "against it"}


def credit_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per temperature and policy, the paper's first. `child_same` and the like are shares of
    the threads that the oracle moves, as means over the steps of all policies whose credit has labels."""
    lines = [line for log in evidence.training.values() for line in log]
    rows = paired_rows(evidence, "credit")
    for row in rows:
        for key in (f"{role}_{sign}" for role in ("child", "root") for sign in SIGNS):
            known = [value for line in lines
                     if (value := line.get(f"{row['credit']}_{key}")) is not None]  # fmt: skip
            row[key] = fmean(known) if known else None
    return rows


def draw_credit(rows: list[Row], notes: list[str]) -> Figure:
    figure, (gains, *signs) = style.new_figure(3, width=8.4, height=3.2)
    names = list(dict.fromkeys(row["credit"] for row in rows))
    for place, (temperature, label) in enumerate(TEMPERATURES.items()):
        shown = [row | {"place": names.index(row["credit"]) + 0.16 * (2 * place - 1)} for row in rows
                 if row["temperature"] == temperature]  # fmt: skip
        look = {"linestyle": "none", "marker": "os"[place]}
        style.draw_series(gains, shown, "place", "gain", style.Series(label, {}, style.COLOURS["apr"], look))
    gains.axhline(0, color=style.FAINT, linewidth=0.8)
    gains.set_title("accuracy over broadcast")
    gains.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}")
    gains.set_ylabel("percentage points")
    for axes, role in zip(signs, ("child", "root"), strict=True):
        for place, (sign, label) in enumerate(SIGNS.items()):
            shares = {row["credit"]: row[f"{role}_{sign}"] for row in rows}
            known = {name: share for name, share in shares.items() if share is not None}
            axes.bar([names.index(name) + 0.38 * place - 0.19 for name in known], list(known.values()), 0.34,
                     label=label, color=(style.COLOURS["apr_max"], style.COLOURS["apr"])[place])
        axes.set_title({"child": "children", "root": "roots"}[role])
        style.percent_axis(axes, "threads that the oracle moves")
    style.legend_above(figure, columns=4)
    for axes in figure.axes:
        axes.set_xticks(range(len(names)), names, size=7)
    return figure


CREDIT = Exhibit("credit", credit_rows, draw_credit, """Left: accuracy after RL with each credit less that
    with the paper's (broadcast), after as many rollouts, paired by problem. Others: of the threads that the
    oracle makes more or less likely, those that a credit moves the same way, and the other way; over the
    rollouts that RL sampled.""", partial(rivals, of="credit"))
