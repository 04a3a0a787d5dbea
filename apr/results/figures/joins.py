"""Waiting for all children against going on at the first success; the paper waits for all."""

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results.evidence import Evidence, Row, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

JOINED = ("all", "any")
SERIES = (style.Series("all", {"join": "all"}, style.COLOURS["apr"], {}),
          style.Series("first success", {"join": "any"}, style.COLOURS["apr_max"], {"marker": "^"}))
PANELS = {"sequential": "sequential tokens", "total": "total tokens", "accuracy": "accuracy"}


def rows(evidence: Evidence) -> list[Row]:
    """Returns a row per kind of join and number of children that both kinds were decoded with.

    `*_change` are paired differences from waiting for all.
    """
    found = []
    swept = {join: evidence.conditions("apr", "sft", 0.0, join) for join in JOINED}
    for condition in swept["any"]:
        if condition not in swept["all"]:
            continue
        cells = {join: evidence.cells[Key("apr", "sft", 0.0, condition, join)] for join in JOINED}
        for join, cell in cells.items():
            row: Row = {"join": join, "condition": condition, "problems": len(cell.problems)}
            for name in PANELS:
                column = "strict" if name == "accuracy" else name
                after, before = mean(cell, column), mean(cells["all"], column)
                row |= evidence.spread(**{name: after, f"{name}_change": after - before})
            found.append(row)
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(PANELS), width=8.4, height=3.2)
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        for series in SERIES:
            style.draw_series(axes, rows, "condition", name, series)
        axes.set_xlabel("children asked for")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    style.percent_axis(panels[-1])
    panels[0].legend(loc="best")
    return figure


JOINS = Exhibit("joins", rows, draw, """APR after SFT, greedy, asked for so many children. All: a parent
    waits for all of its children. First success: it goes on with the first child that returns a solution;
    its siblings are cancelled, and keep as many tokens as that child has. Tokens per problem.""")
