"""Table 2: SoS+ on three kinds of traces."""

from apr.results import paper
from apr.results.evidence import Evidence, Row
from apr.results.figures.tables import accuracy_rows, draw_table

CAPTION = (
    "Accuracy (%) after SFT of SoS+ by its training traces: beam up to 5, beam up to 15, or the "
    "shortest solved of several draws. In parentheses: the paper."
)
ENTRIES = (
    ("SoS+", "sos_plus", "sft"),
    ("SoS+, beam up to 15", "sos_plus_wide", "sft"),
    ("SoS+, rejection-sampled", "sos_plus_selected", "sft"),
)
draw = draw_table


def rows(evidence: Evidence) -> list[Row]:
    return accuracy_rows(evidence, ENTRIES, paper.TABLE2)
