"""Tables 1 to 4: accuracy by temperature. The paper lacks the fourth."""

from collections.abc import Mapping
from functools import partial

from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit

Entries = Mapping[str, tuple[str, str]]
"""By label: model and stage."""


def rows(evidence: Evidence, entries: Entries, reported: Mapping[tuple[str, float], float]) -> list[Row]:
    """Returns a row per entry and temperature; `lenient` is accuracy by the reference's rule, to compare."""
    return [
        {"label": label, "model": model, "stage": stage, "temperature": temperature,
         "problems": len(cell.problems), "samples": cell.samples}
        | evidence.spread(accuracy=accuracy(cell))
        | {"lenient": float(cell.lenient.mean()), "paper": reported.get((label, temperature))}
        for label, (model, stage) in entries.items()
        for temperature in paper.TEMPERATURES
        if (cell := evidence.cell(Key(model, stage, temperature)))
    ]  # fmt: skip


def draw(rows: list[Row], notes: list[str]) -> Figure:
    """Draws a line per label, a column per temperature: accuracy, its interval, the paper's number."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    figure, (axes,) = style.new_figure(width=6.6, height=1.0 + 0.42 * len(labels))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(labels) - 0.4, -0.75))
    for y, weight in ((-0.75, 1.2), (-0.28, 0.7), (len(labels) - 0.4, 1.2)):
        axes.axhline(y, color="black", linewidth=weight, clip_on=False)
    for y, label in enumerate(labels):
        axes.text(0.01, y + 0.16, label, va="center")
    found = {(row["label"], row["temperature"]): row for row in rows}
    for place, temperature in enumerate(paper.TEMPERATURES):
        x = 0.38 + 0.17 * place
        write = partial(axes.text, x, ha="center", va="center")
        write(-0.48, f"T = {temperature:g}", weight="bold")
        for y, label in enumerate(labels):
            if (row := found.get((label, temperature))) is None:
                write(y + 0.16, "–", color=style.FAINT)
                continue
            value, low, high = (100 * row[f"accuracy{end}"] for end in ("", "_low", "_high"))
            write(y + 0.03, f"{value:.1f}")
            write(y + 0.3, f"[{low:.1f}, {high:.1f}]", size=6.5, color="#555555")
            if row["paper"] is not None:
                reported = f"({100 * row['paper']:.1f})"
                axes.text(x + 0.035, y + 0.02, reported, va="center", size=6.5, color=style.FAINT)
    return figure


def _table(
    number: int, caption: str, entries: Entries, reported: Mapping[tuple[str, float], float] | None = None
) -> Exhibit:
    caption += " In parentheses: the paper." if reported else ""
    return Exhibit(f"table{number}", partial(rows, entries=entries, reported=reported or {}), draw, caption)


SERIAL, PARALLEL = ("sos_plus", "sft"), ("apr", "sft")
TABLES = (
    _table(1, "Accuracy (%) after SFT of SoS (pure breadth-first or depth-first traces) and SoS+ (hybrid).",
           {"SoS": ("sos", "sft"), "SoS+": SERIAL}, paper.TABLE1),
    _table(2, """Accuracy (%) after SFT of SoS+ by its training traces: beam up to 5, beam up to 15, or the
           shortest solved of several draws.""",
           {"SoS+": SERIAL, "SoS+, beam up to 15": ("sos_plus_wide", "sft"),
            "SoS+, rejection-sampled": ("sos_plus_selected", "sft")}, paper.TABLE2),
    _table(3, """Accuracy (%) of all methods before and after RL; prompts without a budget.""",
           {"SoS+": SERIAL, "APR": PARALLEL, "SoS+ + RL": ("sos_plus", "rl"), "APR + RL": ("apr", "rl")},
           paper.TABLE3),
    _table(4, """Accuracy (%) after SFT of APR, and of SoS+ trained on as many tokens, as many sequences
           (threads) or as many problems as APR.""",
           {"APR": PARALLEL, "SoS+, equal tokens": SERIAL,
            "SoS+, equal sequences": ("sos_plus_sequences", "sft"),
            "SoS+, equal problems": ("sos_plus_problems", "sft")}),
)  # fmt: skip
