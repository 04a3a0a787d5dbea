"""Tables 1 to 4: accuracy by temperature. The paper lacks the fourth."""

from collections.abc import Mapping
from functools import partial

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

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
    """Draws a line per label, a column per temperature: accuracy, the paper's number, its interval."""
    shown: dict[str, dict[float, str]] = {row["label"]: {} for row in rows}
    for row in rows:
        value, low, high = (100 * row[f"accuracy{end}"] for end in ("", "_low", "_high"))
        reported = "" if row["paper"] is None else f" ({100 * row['paper']:.1f})"
        shown[row["label"]][row["temperature"]] = f"{value:.1f}{reported}\n[{low:.1f}, {high:.1f}]"
    figure, (axes,) = style.new_figure(width=6.6, height=1.0 + 0.42 * len(shown))
    axes.set_axis_off()
    cells = [[label, *(texts.get(temperature, "–") for temperature in paper.TEMPERATURES)]
             for label, texts in shown.items()]  # fmt: skip
    header = ["", *(f"T = {temperature:g}" for temperature in paper.TEMPERATURES)]
    table = axes.table(cells, colLabels=header, colWidths=[2, 1, 1, 1, 1], cellLoc="left", colLoc="left",
                       edges="horizontal", bbox=Bbox.unit())  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(8.5)
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
