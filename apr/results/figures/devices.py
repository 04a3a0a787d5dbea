"""Latency on more devices, by the model of `apr.evaluation.latency_model`; the paper decodes on 8 GPUs."""

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results.evidence import Evidence, Row, accuracy
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit
from apr.results.figures.fig6 import latency

SERIES = (("sos_plus", "all", None), *(("apr", join, k) for k in (3, 6, 10) for join in ("all", "any")))
LINES = {3: ":", 6: "--", 10: "-", None: "-"}


def rows(evidence: Evidence) -> list[Row]:
    """Returns a row per model, kind of join, condition, devices; `error` is modelled / measured - 1."""
    found = []
    for model, join, condition in SERIES:
        if (cell := evidence.cell(key := Key(model, "sft", 0.0, condition, join))) is None:
            continue
        measured = latency(evidence, key)
        row: Row = {"model": model, "join": join, "condition": condition, "problems": len(cell.problems)}
        row["accuracy"] = float(accuracy(cell).mean())
        for devices, seconds in (evidence.latency(key, "modelled") or {None: None}).items():
            error = {"error": seconds / measured["latency"] - 1 if devices == "1" else None}
            found.append(row | {"devices": devices and int(devices), "modelled": seconds} | measured | error)
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, (axes,) = style.new_figure(width=7.2)
    timed = [row for row in rows if row["devices"]]
    for model, join, condition in SERIES:
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


DEVICES = Exhibit("devices", rows, draw, """Seconds per problem, batch size 1, greedy, after SFT: the
    threads of the timed problems replayed through measured costs of decoding steps, a child on the device
    with the fewest threads. Crosses: measured on one device. In brackets: accuracy.""")
