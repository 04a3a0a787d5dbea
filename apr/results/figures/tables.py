"""What the three tables share: accuracy by temperature, as rows and as a picture."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results.evidence import Evidence, Row, accuracy
from apr.results.figures import style
from apr.results.paper import TEMPERATURES

Entry = tuple[str, str, str]
"""Label, model, stage."""


def accuracy_rows(
    evidence: Evidence, entries: Sequence[Entry], paper: Mapping[tuple[str, float], float]
) -> list[Row]:
    """A row per entry and temperature; `lenient` is the accuracy by the reference's rule, to compare only."""
    return [
        {"label": label, "model": model, "stage": stage, "temperature": temperature,
         "problems": len(cell.problems), "samples": cell.samples}
        | evidence.spread("accuracy", accuracy(cell))
        | {"lenient": float(cell.lenient.mean()), "paper": paper.get((label, temperature))}
        for label, model, stage in entries
        for temperature in TEMPERATURES
        if (cell := evidence.cell(Key(model, stage, temperature)))
    ]  # fmt: skip


def draw_table(rows: list[Row], notes: list[str]) -> Figure:
    """A line per label, a column per temperature: accuracy, its interval, the paper's number."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    figure, (axes,) = style.new_figure(width=6.6, height=1.0 + 0.42 * len(labels))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(labels) - 0.4, -0.75)
    columns = {temperature: 0.38 + 0.17 * place for place, temperature in enumerate(TEMPERATURES)}
    for temperature, x in columns.items():
        axes.text(x, -0.48, f"T = {temperature:g}", ha="center", va="center", weight="bold")
    for y, weight in ((-0.75, 1.2), (-0.28, 0.7), (len(labels) - 0.4, 1.2)):
        axes.plot((0, 1), (y, y), color="black", linewidth=weight, clip_on=False)
    found = {(row["label"], row["temperature"]): row for row in rows}
    for y, label in enumerate(labels):
        axes.text(0.01, y + 0.16, label, va="center")
        for temperature, x in columns.items():
            if (row := found.get((label, temperature))) is None:
                axes.text(x, y + 0.16, "–", ha="center", va="center", color=style.FAINT)
                continue
            axes.text(x, y + 0.03, f"{100 * row['accuracy']:.1f}", ha="center", va="center")
            small = f"[{100 * row['accuracy_low']:.1f}, {100 * row['accuracy_high']:.1f}]"
            axes.text(x, y + 0.3, small, ha="center", va="center", size=6.5, color="#555555")
            if row["paper"] is not None:
                axes.text(x + 0.035, y + 0.02, f"({100 * row['paper']:.1f})", va="center", size=6.5,
                          color=style.FAINT)
    return figure
