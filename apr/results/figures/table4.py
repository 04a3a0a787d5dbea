"""Table 4, which the paper lacks: SoS+ trained on as much as APR, by each way to count it."""

from apr.results.evidence import Evidence, Row
from apr.results.figures.tables import accuracy_rows, draw_table

CAPTION = (
    "Accuracy (%) after SFT of APR, and of SoS+ trained on as many tokens, as many sequences (threads) or "
    "as many problems as APR."
)
ENTRIES = (
    ("APR", "apr", "sft"),
    ("SoS+, equal tokens", "sos_plus", "sft"),
    ("SoS+, equal sequences", "sos_plus_sequences", "sft"),
    ("SoS+, equal problems", "sos_plus_problems", "sft"),
)
draw = draw_table


def rows(evidence: Evidence) -> list[Row]:
    return accuracy_rows(evidence, ENTRIES, {})
