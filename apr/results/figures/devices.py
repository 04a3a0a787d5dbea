"""Latency on more devices, by the model of `apr.evaluation.latency_model`; the paper decodes on 8 GPUs."""

from typing import Any

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results.evidence import Evidence, Row, accuracy
from apr.results.figures import style

CAPTION = ("Seconds per problem, batch size 1, greedy, after SFT: the threads of the timed problems replayed "
           "through measured costs of decoding steps, a child on the device with the fewest threads. "
           "Crosses: measured on one device. In brackets: accuracy.")
SERIES = (("sos_plus", "all", None), *(("apr", join, k) for k in (3, 6, 10) for join in ("all", "any")))
LINES = {3: ":", 6: "--", 10: "-", None: "-"}


def rows(evidence: Evidence) -> list[Row]:
    """A row per model, kind of join, condition and number of devices; `error` is modelled / measured - 1."""
    found = []
    for model, join, condition in SERIES:
        cell = evidence.cell(Key(model, "sft", 0.0, condition, join))
        measured = evidence.latency(model, "sft", condition, join)
        modelled: dict[Any, Any] = evidence.modelled(model, "sft", condition, join) or {None: None}
        if cell is None:
            continue
        for devices, seconds in modelled.items():
            row: Row = {"model": model, "join": join, "condition": condition, "problems": len(cell.problems)}
            row |= {"accuracy": float(accuracy(cell).mean()), "devices": devices, "modelled": seconds}
            error = seconds / measured["latency"] - 1 if devices == 1 else None
            found.append(row | measured | {"error": error})
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, (axes,) = style.new_figure(width=7.2)
    for model, join, condition in SERIES:
        named = {"model": model, "join": join, "condition": condition}.items()
        points = [row for row in rows if named <= row.items() and row["devices"]]
        if not points:
            continue
        label = "SoS+" if model == "sos_plus" else f"APR, {condition} children"
        label += ", first success" if join == "any" else ""
        colour = style.COLOURS["apr_max" if join == "any" else model]
        axes.plot([row["devices"] for row in points], [row["modelled"] for row in points], color=colour,
                  linestyle=LINES[condition], marker=".", label=f"{label} ({points[0]['accuracy']:.0%})")
        measured = style.errors(points[:1], "latency")
        axes.errorbar([1], [points[0]["latency"]], measured, color=colour, marker="x")
    axes.set_xscale("log", base=2)
    devices = sorted({row["devices"] for row in rows if row["devices"]})
    axes.set_xticks(devices, [str(number) for number in devices])
    axes.set_xlabel("devices")
    axes.set_ylabel("seconds per problem")
    axes.set_ylim(bottom=0)
    if devices:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
