"""Accuracy against sequential tokens and latency: Figure 6, kinds of join, and more devices.

A parent of the paper waits for all its children. Latency on more devices, of which the paper has 8, is by the
model of `apr.rollouts.replay`.
"""

import numpy as np
from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

BEFORE, AFTER = {"markerfacecolor": "white"}, {"linestyle": "none"}
FIG6_SERIES = [
    style.Series(label, {"model": model, "stage": stage, "join": join}, style.COLOURS[model],
                 {"marker": marker} | (BEFORE if stage == "sft" else AFTER))
    for label, model, stage, join, marker in (
    ("SoS+, SFT", "sos_plus", "sft", "all", "s"), ("SoS+, RL", "sos_plus", "rl", "all", "s"),
    ("APR, SFT", "apr", "sft", "all", "o"), ("APR, SFT, first success", "apr", "sft", "any", "^"),
    ("APR, RL", "apr", "rl", "all", "o"), ("APR held, RL", "apr_max", "rl", "all", "o"))]  # fmt: skip
FIG6_PANELS = {"sequential": "sequential tokens per problem", "latency": "seconds per problem"}


def fig6_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per model, stage, condition and kind of join that was decoded greedily."""
    found = []
    for model, stage, join in (series.where.values() for series in FIG6_SERIES):
        for condition in evidence.conditions(model, stage, 0.0, join):
            cell = evidence.cells[key := Key(model, stage, 0.0, condition, join)]
            counts = {name: mean(cell, name) for name in ("sequential", "total")}
            found.append({"model": model, "stage": stage, "join": join, "condition": condition}
                         | evidence.measured(accuracy=accuracy(cell), **counts) | latency(evidence, key))
    return found


def latency(evidence: Evidence, key: Key) -> Row:
    """Returns columns `latency` (seconds per problem, with interval), `latency_p50`, `latency_p95`."""
    if not (timed := evidence.latency(key)):
        return dict.fromkeys(("latency", "latency_low", "latency_high", "latency_p50", "latency_p95"))
    tails = {f"latency_{tail}": evidence.latency(key, tail)["seconds"] for tail in ("p50", "p95")}
    return evidence.spread(latency=np.array([row["seconds"] for row in timed])) | tails


def draw_fig6(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(2, width=8.4, height=3.7)
    for axes, (x, label) in zip(panels, FIG6_PANELS.items(), strict=True):
        for series in FIG6_SERIES:
            style.draw_series(axes, rows, x, "accuracy", series,
                              lambda row: "u" if row["condition"] is None else row["condition"])
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        style.percent_axis(axes)
    style.mark_paper(panels[1], paper.FIG6, notes)
    style.legend_above(figure)
    return figure


FIG6 = Exhibit("fig6", fig6_rows, draw_fig6, """Greedy accuracy against sequential tokens (the longest
    chain of dependent decoding) and against latency (batch size 1, mean over the problems that were
    timed). Numbers: tokens or children asked for; u: unconditioned. First success: a parent goes on
    with the first child that returns a solution, and its siblings are cancelled.""")


JOINED = ("all", "any")
JOIN_SERIES = (style.Series("all", {"join": "all"}, style.COLOURS["apr"], {}),
               style.Series("first success", {"join": "any"}, style.COLOURS["apr_max"], {"marker": "^"}))
JOIN_PANELS = {"sequential": "sequential tokens", "total": "total tokens", "accuracy": "accuracy"}


def joins_rows(evidence: Evidence) -> list[Row]:
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
            for name in JOIN_PANELS:
                column = "strict" if name == "accuracy" else name
                after, before = mean(cell, column), mean(cells["all"], column)
                row |= evidence.spread(**{name: after, f"{name}_change": after - before})
            found.append(row)
    return found


def draw_joins(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(JOIN_PANELS), width=8.4, height=3.2)
    for axes, (name, label) in zip(panels, JOIN_PANELS.items(), strict=True):
        for series in JOIN_SERIES:
            style.draw_series(axes, rows, "condition", name, series)
        axes.set_xlabel("children asked for")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    style.percent_axis(panels[-1])
    panels[0].legend(loc="best")
    return figure


JOINS = Exhibit("joins", joins_rows, draw_joins, """APR after SFT, greedy, asked for so many children.
    All: a parent waits for all of its children. First success: it goes on with the first child that
    returns a solution; its siblings are cancelled, and keep as many tokens as that child has. Tokens
    per problem.""")


TIMED = (("sos_plus", "all", None), *(("apr", join, k) for k in (3, 6, 10) for join in ("all", "any")))
LINES = {3: ":", 6: "--", 10: "-", None: "-"}


def devices_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per model, kind of join, condition, devices; `error` is modelled / measured - 1."""
    found = []
    for model, join, condition in TIMED:
        if (cell := evidence.cell(key := Key(model, "sft", 0.0, condition, join))) is None:
            continue
        measured = latency(evidence, key)
        row: Row = {"model": model, "join": join, "condition": condition, "problems": len(cell.problems)}
        row["accuracy"] = float(accuracy(cell).mean())
        for devices, seconds in (evidence.latency(key, "modelled") or {None: None}).items():
            error = {"error": seconds / measured["latency"] - 1 if devices == "1" else None}
            found.append(row | {"devices": devices and int(devices), "modelled": seconds} | measured | error)
    return found


def draw_devices(rows: list[Row], notes: list[str]) -> Figure:
    figure, (axes,) = style.new_figure(width=7.2)
    timed = [row for row in rows if row["devices"]]
    for model, join, condition in TIMED:
        where = {"model": model, "join": join, "condition": condition}
        label = "SoS+" if model == "sos_plus" else f"APR, {condition} children"
        label += ", first success" if join == "any" else ""
        solved = next((row["accuracy"] for row in timed if where.items() <= row.items()), 0)
        colour = style.COLOURS["apr_max" if join == "any" else model]
        series = style.Series(f"{label} ({solved:.0%})", where, colour,
                              {"marker": ".", "linestyle": LINES[condition]})  # fmt: skip
        style.draw_series(axes, timed, "devices", "modelled", series)
        measured = series._replace(label="_", look={"marker": "x", "linestyle": "none"})
        style.draw_series(axes, [row for row in timed if row["devices"] == 1], "devices", "latency", measured)
    axes.set_xscale("log", base=2)
    devices = sorted({row["devices"] for row in timed})
    axes.set_xticks(devices, [str(number) for number in devices])
    axes.set_xlabel("devices")
    axes.set_ylabel("seconds per problem")
    axes.set_ylim(bottom=0)
    if devices:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


DEVICES = Exhibit("devices", devices_rows, draw_devices, """Seconds per problem, batch size 1, greedy,
    after SFT: the threads of the timed problems replayed through measured costs of decoding steps, a
    child on the device with the fewest threads. Crosses: measured on one device. In brackets: accuracy.""")
