"""Whether children that may spawn solve more than those that search by themselves, in the same window."""

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from apr.core.params import Params
from apr.evaluation.results import Key
from apr.evaluation.statistics import cons_at
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

MODELS = {"apr": "depth 1", "nested": "depth 2"}
COLUMNS = {"total": "total tokens", "sequential": "sequential", "longest": "longest thread",
           "threads": "threads"}  # fmt: skip
WAYS = {(0.0, "all"): "greedy", (0.0, "any"): "greedy, first success", (1.0, "all"): "T = 1"}
VOTED = Key("apr", "sft", 0.5)
"""Of which all samples vote: as many as make the tokens of depth 2."""


def depth_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per model and way of decoding, and one of votes of depth 1."""
    found: list[Row] = []
    for stage, after in style.STAGES.items():
        for (temperature, join), how in WAYS.items():
            for model, label in MODELS.items():
                if cell := evidence.cell(Key(model, stage, temperature, None, join)):
                    counts = {name: mean(cell, name) for name in COLUMNS}
                    found.append({"label": f"{label}, {after}, {how}"}
                                 | evidence.measured(accuracy=accuracy(cell), **counts))  # fmt: skip
    if cell := evidence.cell(VOTED):
        n = cell.samples
        counts = {name: mean(cell, name) * (n if name in ("total", "threads") else 1) for name in COLUMNS}
        voted = cons_at(n, cell.votes, cell.strict)
        found.append({"label": f"{MODELS['apr']}, SFT, cons@{n}, T = {VOTED.temperature:g}"}
                     | evidence.measured(accuracy=voted, **counts))  # fmt: skip
    return found


def draw_depth(rows: list[Row], notes: list[str]) -> Figure:
    figure, (axes,) = style.new_figure(width=7.4, height=1.0 + 0.24 * len(rows))
    axes.set_axis_off()

    def line(row: Row) -> list[str]:
        value, low, high = (100 * row[f"accuracy{end}"] for end in ("", "_low", "_high"))
        counts = (f"{row[name]:,.0f}" for name in COLUMNS)
        return [row["label"], f"{value:.1f} [{low:.1f}, {high:.1f}]", *counts]

    header = ["", "accuracy (%)", *COLUMNS.values()]
    table = axes.table([line(row) for row in rows], colLabels=header, colWidths=[2.4, 1.5, 1, 1, 1.1, 0.8],
                       cellLoc="left", colLoc="left", edges="horizontal", bbox=Bbox.unit())  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    return figure


def of_depth(params: Params) -> bool:
    """Whether a scale has the method of depth 2."""
    return "nested" in params.traces.methods


DEPTH = Exhibit("depth", depth_rows, draw_depth, """Children that search by themselves (depth 1) and children
    that may spawn (depth 2), in the same window. First success: parents, at every depth, go on with the
    first child that returns a solution. Per problem: tokens, the longest chain of dependent decoding, the
    longest thread (prompt and joined tokens included), threads. cons@n: votes of n samples.""", of_depth)
