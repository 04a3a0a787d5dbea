"""One look for all figures: a colour per method, hollow or pale before RL, full after it."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from apr.results.evidence import Row
from apr.results.figures.labels import label_mark

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.7, "legend.frameon": False,
    "legend.fontsize": 8, "lines.linewidth": 1.4, "lines.markersize": 5, "errorbar.capsize": 2,
    "figure.dpi": 150, "svg.hashsalt": "apr", "svg.fonttype": "path",
}  # fmt: skip
"""Everything that a figure's bytes depend on, but the rows."""

COLOURS = {"sos": "#56B4E9", "sos_plus": "#0072B2", "apr": "#D55E00", "apr_max": "#009E73",
           "critical_path": "#E69F00", "parallel": "#CC79A7"}
"""Okabe and Ito's palette, distinct under all common colour blindness."""
FAINT = "#8a8a8a"
STAGES = {"sft": "SFT", "rl": "RL"}
PAIRED = (-0.19, 0.19)
"""Places of the bars before and after RL."""


def new_figure(columns: int = 1, width: float = 5.6, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


class Series(NamedTuple):
    label: str
    where: Mapping[str, Any]
    """Columns and values of its rows."""
    colour: str
    look: Mapping[str, Any]
    """How `Axes.errorbar` draws it, beside the usual."""


def draw_series(axes: Axes, rows: Sequence[Row], x: str, y: str, series: Series,
                named: Callable[[Row], object] | None = None) -> None:
    """Draws a line through the rows of a series, with error bars in each direction that has an interval.

    What was decoded unconditioned stands beside the line. `named` says what is written at a mark, None for
    nothing.
    """
    own = [row for row in rows if series.where.items() <= row.items() and None not in (row[x], row[y])]
    usual: dict[str, Any] = {"marker": "o", "elinewidth": 0.8, "color": series.colour,
                             "ecolor": f"{series.colour}73"}  # fmt: skip
    for free in (False, True):
        if shown := [row for row in own if (row.get("condition", 0) is None) == free]:
            bars = {f"{axis}err": _errors(shown, name) for axis, name in (("x", x), ("y", y))
                    if f"{name}_low" in shown[0]}  # fmt: skip
            label = "_" if series.label in axes.get_legend_handles_labels()[1] else series.label
            axes.errorbar([row[x] for row in shown], [row[y] for row in shown],
                          **usual | bars | {"label": label} | dict(series.look))  # fmt: skip
    for row in own:
        if named and (text := named(row)) is not None:
            label_mark(axes, text, row[x], row[y], series.colour)


def draw_bars(axes: Axes, place: float, rows: Sequence[Row], name: str, colour: str) -> None:
    """Draws a bar with its interval for each of the rows before RL, pale, and after it."""
    pale = [0.45 * channel + 0.55 for channel in to_rgb(colour)]
    for offset, (stage, shade) in zip(PAIRED, (("sft", pale), ("rl", colour)), strict=True):
        for row in (row for row in rows if row["stage"] == stage):
            axes.bar(place + offset, row[name], 0.34, yerr=_errors([row], name), color=shade,
                     error_kw={"elinewidth": 0.9, "alpha": 0.7})  # fmt: skip
    axes.set_ylim(0, 1.05 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1)  # -inf before the first bar
    axes.grid(axis="x", visible=False)


def _errors(rows: Sequence[Row], name: str) -> list[list[float]]:
    """Lengths of error bars, below and above."""
    return [[max(0.0, row[name] - row[f"{name}_low"]) for row in rows],
            [max(0.0, row[f"{name}_high"] - row[name]) for row in rows]]  # fmt: skip


def legend_above(figure: Figure, columns: int = 3) -> None:
    """Names each series once, whichever panel has it."""
    named = {label: handle for axes in figure.axes
             for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=columns)


def percent_axis(axes: Axes, label: str = "accuracy") -> None:
    """Shows shares as percentages from 0; the axis follows the data, and has at least 10 %."""
    axes.set_ylim(0, min(max(0.1, axes.dataLim.y1 * 1.12), 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel(label)


def mark_paper(axes: Axes, accuracies: Mapping[str, float], notes: list[str]) -> None:
    """Draws faint lines at the paper's accuracies, named on the right; the caption has those off the axis."""
    named: dict[float, str] = {}
    for name, value in sorted(accuracies.items(), key=lambda item: -item[1]):
        if value > axes.get_ylim()[1]:
            notes.append(f"Paper: {name} {value:.1%}.")
            continue
        axes.axhline(value, color=FAINT, linewidth=0.8, linestyle=":", zorder=0)
        last = min(named, default=np.inf)
        crowded = last - value < 0.1 * axes.get_ylim()[1]
        above = f"{named.pop(last)}\n" if crowded else ""
        named[(last + value) / 2 if crowded else value] = f"{above}paper: {name} {value:.1%}"
    names = axes.secondary_yaxis("right")
    names.set_yticks(list(named), list(named.values()), size=6.5, color=FAINT)
    names.tick_params(length=0)
    names.spines["right"].set_visible(False)


def wrap_caption(text: str, width: float) -> tuple[list[str], float]:
    """Returns the lines of a caption below a figure of `width` inches, and the inches that they take."""
    lines = textwrap.wrap(text, int(width * 18.5))
    return lines, len(lines) * 0.128 + 0.1


def add_caption(figure: Figure, text: str) -> None:
    """Writes small text below the axes."""
    lines, inches = wrap_caption(text, figure.get_figwidth())
    height = inches / figure.get_figheight()
    figure.set_layout_engine("constrained", rect=(0, height, 1, 1 - height))
    figure.text(0.012, 0.04 / figure.get_figheight(), "\n".join(lines), size=6.5, color="#555555",
                va="bottom", linespacing=1.25)  # fmt: skip


def save(figure: Figure, caption: str, path: Path) -> None:
    """Writes `path` as .svg, whose title is the caption, and .png: the same bytes for the same figure."""
    metadata = {"Date": None, "Creator": None, "Title": caption}
    figure.savefig(path.with_suffix(".svg"), metadata=metadata)
    figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
