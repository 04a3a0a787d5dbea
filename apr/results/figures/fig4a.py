"""Fig 4a: accuracy against mean total tokens, before RL, at temperature 1."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apr.evaluation.results import Key
from apr.evaluation.statistics import cons_at, pass_at
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style

CAPTION = ("Accuracy against mean total tokens per problem after SFT, T = 1. APR is asked for 0 to 10 "
           "children; SoS+ decodes n samples (cons@n: majority vote, pass@n: any is right; both over all "
           "n-subsets).")
SAMPLES = 8
APR, CONS, PASS = "APR, children asked for", "SoS+ cons@n", "SoS+ pass@n"


def rows(evidence: Evidence) -> list[Row]:
    return scaling(evidence, 1.0)


def scaling(evidence: Evidence, temperature: float) -> list[Row]:
    """The three series at one temperature; `amount` is the number of children or of samples."""
    found = []
    for children in range(evidence.params.grammar.max_children + 1):
        if cell := evidence.cell(Key("apr", "sft", temperature, children)):
            found.append({"temperature": temperature, "series": APR, "amount": children}
                         | {"problems": len(cell.problems)}
                         | evidence.spread("tokens", mean(cell, "total"))
                         | evidence.spread("accuracy", accuracy(cell)))
    if cell := evidence.cell(Key("sos_plus", "sft", temperature)):
        if cell.samples < SAMPLES:
            evidence.missing.append(f"sft/sos_plus T={temperature:g} samples {cell.samples + 1} to {SAMPLES}")
        for series in (CONS, PASS):
            for n in range(1, min(cell.samples, SAMPLES) + 1):
                solved = cons_at(n, cell.votes, cell.strict) if series == CONS else pass_at(n, cell.strict)
                found.append({"temperature": temperature, "series": series, "amount": n}
                             | {"problems": len(cell.problems)}
                             | evidence.spread("tokens", n * mean(cell, "total"))
                             | evidence.spread("accuracy", solved))
    return found


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, (axes,) = style.new_figure()
    draw_scaling(axes, rows)
    style.percent_axis(axes)
    style.mark_paper(axes, paper.FIG4A, notes)
    axes.legend(loc="best")
    return figure


def draw_scaling(axes: Axes, rows: list[Row]) -> None:
    """One panel: a line per series, its first and last points labelled with children or n."""
    looks = {APR: ("apr", "o", "-"), CONS: ("sos_plus", "s", "-"), PASS: ("sos_plus", "^", "--")}
    for series, (method, marker, line) in looks.items():
        points = [row for row in rows if row["series"] == series]
        if not points:
            continue
        style.draw_points(axes, points, "tokens", "accuracy", style.COLOURS[method], marker=marker,
                          linestyle=line, label=series)
        for row in {id(row): row for row in (points[0], points[-1])}.values():
            axes.annotate(str(row["amount"]), (row["tokens"], row["accuracy"]), xytext=(4, 4), size=7,
                          textcoords="offset points", color=style.COLOURS[method])
    axes.set_xlim(left=0)
    axes.set_xlabel("total tokens per problem")
