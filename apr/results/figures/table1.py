"""Table 1: SoS against SoS+ by temperature."""

from apr.results import paper
from apr.results.evidence import Evidence, Row
from apr.results.figures.tables import accuracy_rows, draw_table

CAPTION = (
    "Accuracy (%) after SFT of SoS (pure breadth-first or depth-first traces) and SoS+ (hybrid). In "
    "parentheses: the paper."
)
ENTRIES = (("SoS", "sos", "sft"), ("SoS+", "sos_plus", "sft"))
draw = draw_table


def rows(evidence: Evidence) -> list[Row]:
    return accuracy_rows(evidence, ENTRIES, paper.TABLE1)
