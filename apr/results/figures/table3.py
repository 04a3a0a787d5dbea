"""Table 3: all methods by temperature, before and after RL."""

from apr.results import paper
from apr.results.evidence import Evidence, Row
from apr.results.figures.tables import accuracy_rows, draw_table

CAPTION = (
    "Accuracy (%) of all methods before and after RL; prompts without a budget. In parentheses: the "
    "paper."
)
ENTRIES = (
    ("SoS+", "sos_plus", "sft"),
    ("APR", "apr", "sft"),
    ("SoS+ + RL", "sos_plus", "rl"),
    ("APR + RL", "apr", "rl"),
)
draw = draw_table


def rows(evidence: Evidence) -> list[Row]:
    return accuracy_rows(evidence, ENTRIES, paper.TABLE3)
