"""One look for all figures: a colour per method, hollow or pale before RL, full after it."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from apr.results.evidence import Row

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.7, "legend.frameon": False,
    "legend.fontsize": 8, "lines.linewidth": 1.4, "lines.markersize": 5, "errorbar.capsize": 2,
    "figure.dpi": 150, "svg.hashsalt": "apr", "svg.fonttype": "path",
}  # fmt: skip
"""Everything that a figure's bytes depend on, but the rows."""

COLOURS = {"sos": "#56B4E9", "sos_plus": "#0072B2", "apr": "#D55E00", "apr_max": "#009E73"}
"""Okabe and Ito's palette, distinct under all common colour blindness."""
FAINT = "#9a9a9a"
STAGES = {"sft": "SFT", "rl": "RL"}


def new_figure(columns: int = 1, width: float = 5.6, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def errors(rows: Sequence[Row], name: str) -> list[list[float]]:
    """Lengths of error bars, below and above."""
    return [[max(0.0, row[name] - row[f"{name}_low"]) for row in rows],
            [max(0.0, row[f"{name}_high"] - row[name]) for row in rows]]  # fmt: skip


def draw_points(axes: Axes, rows: Sequence[Row], x: str, y: str, colour: str, **look: Any) -> None:
    """A line through points with error bars in both directions."""
    usual: dict[str, Any] = {"marker": "o", "elinewidth": 0.8, "color": colour, "ecolor": colour}
    bars = axes.errorbar([row[x] for row in rows], [row[y] for row in rows], errors(rows, y), errors(rows, x),
                         **usual | look)  # fmt: skip
    for line in bars.lines[2]:
        line.set_alpha(0.45)


def draw_bar(axes: Axes, place: float, width: float, row: Row, name: str, colour: str) -> None:
    """A bar with its error bar; pale before RL."""
    pale = [0.45 * channel + 0.55 for channel in to_rgb(colour)]
    axes.bar(place, row[name], width, yerr=errors([row], name), error_kw={"elinewidth": 0.9, "alpha": 0.7},
             color=pale if row["stage"] == "sft" else colour)  # fmt: skip
    axes.set_ylim(0, axes.dataLim.y1 * 1.05 or 1)
    axes.grid(axis="x", visible=False)


def percent_axis(axes: Axes, label: str = "accuracy") -> None:
    """Shares as percentages from 0; the axis follows the data, and shows at least 10 %."""
    top = max(0.1, axes.dataLim.y1 * 1.12)
    axes.set_ylim(0, min(top, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel(label)


def mark_paper(axes: Axes, accuracies: Mapping[str, float], notes: list[str]) -> None:
    """Faint lines at the paper's accuracies; those off the axis go into the caption instead."""
    top = axes.get_ylim()[1]
    above = None
    for name, value in sorted(accuracies.items(), key=lambda item: -item[1]):
        if value > top:
            notes.append(f"Paper: {name} {value:.1%}.")
            continue
        crowded = above is not None and above - value < 0.06 * top
        axes.axhline(value, color=FAINT, linewidth=0.8, linestyle=":", zorder=0)
        axes.annotate(f"paper: {name} {value:.1%}", (1, value), xycoords=("axes fraction", "data"), size=6.5,
                      color=FAINT, ha="right", va="top" if crowded else "bottom", zorder=0,
                      xytext=(0, -2 if crowded else 1), textcoords="offset points",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
        above = value


def wrap_caption(text: str, width: float) -> tuple[list[str], float]:
    """The lines of a caption below a figure of `width` inches, and the height in inches that they take."""
    lines = textwrap.wrap(text, int(width * 18.5))
    return lines, len(lines) * 0.128 + 0.1


def add_caption(figure: Figure, text: str) -> None:
    """Small text below the axes."""
    lines, inches = wrap_caption(text, figure.get_figwidth())
    height = inches / figure.get_figheight()
    figure.set_layout_engine("constrained", rect=(0, height, 1, 1 - height))
    figure.text(0.012, 0.04 / figure.get_figheight(), "\n".join(lines), size=6.5, color="#555555",
                va="bottom", linespacing=1.25)  # fmt: skip


def save(figure: Figure, path: Path, caption: str) -> None:
    """Writes `path`.svg, whose title is the caption, and `path`.png, the same bytes for the same rows."""
    metadata = {"Date": None, "Creator": None, "Title": caption}
    figure.savefig(path.with_suffix(".svg"), metadata=metadata)
    figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
