"""Who decides how much is decoded: votes over serial samples, a number of children, or the model itself.

And which number of children is best for how many devices, by the model of `apr.rollouts.replay`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from apr.core.params import DEVICES, Params
from apr.evaluation.results import Cell, Key
from apr.evaluation.statistics import cons_at, most_at, stop_at
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit
from apr.results.figures.paired import rivals
from apr.rollouts.replay import Costs, Part, replay

SHOWN = (1, 2, 8)
"""Devices of the table."""
VOTES, AGREE, ASKED = (1, 3, 5, 9), (1, 2, 3), (3, 6, 10)
"""Samples that vote; equal answers with which sampling stops; children."""
SERIAL = Key("sos_plus", "sft", 1.0)


def controllers_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per controller: accuracy, tokens, and modelled seconds of the timed problems."""
    return [*_votes(evidence), *_trees(evidence)]


def _trees(evidence: Evidence) -> Iterator[Row]:
    """What a model decodes greedily, one rollout a problem."""
    named = {"serial, greedy": Key("sos_plus", "sft", 0.0)}
    named |= {f"{k} children": Key("apr", "sft", 0.0, k) for k in ASKED}
    named |= {f"{k} children, first success": Key("apr", "sft", 0.0, k, "any") for k in ASKED}
    named |= {"adaptive": Key("apr", "sft", 0.0), "adaptive, RL": Key(paper.POLICY, "rl", 0.0)}
    named |= {f"adaptive, RL, {name}": Key(name, "rl", 0.0) for name in rivals(evidence.params, "reward")}
    for name, key in named.items():
        if cell := evidence.cell(key):
            seconds = evidence.latency(key, "modelled") or {}
            counts = {column: mean(cell, column) for column in ("total", "sequential")}
            yield {"controller": name, "temperature": key.temperature} | evidence.measured(
                accuracy=accuracy(cell), **counts) | {
                f"seconds_{devices}": seconds.get(str(devices)) for devices in SHOWN}


def _votes(evidence: Evidence) -> Iterator[Row]:
    """Votes over serial samples: so many at once, or one after another until some agree."""
    if (cell := evidence.cell(SERIAL)) is None:
        return
    given = evidence.latency(SERIAL._replace(temperature=0.0), "costs")
    timed = evidence.latency(SERIAL._replace(temperature=0.0)) if given else ()
    costs = costs_of(given) if given else None
    places = [cell.problems.index(row["problem_id"]) for row in timed]

    def row(name: str, seconds: Mapping[int, float], **measured: np.ndarray) -> Row:
        return {"controller": name, "temperature": SERIAL.temperature} | evidence.measured(**measured) | {
            f"seconds_{devices}": seconds.get(devices) for devices in SHOWN}

    total, samples = mean(cell, "total"), cell.samples
    for n in VOTES:
        if n > samples:
            evidence.missing.append(f"{SERIAL} samples {samples + 1} to {n}")
            continue
        seconds = {devices: float(np.mean([replay(_samples(cell, place, range(n)), costs, devices, n)
                                           for place in places])) for devices in SHOWN if costs}  # fmt: skip
        yield row(f"cons@{n}", seconds, accuracy=cons_at(n, cell.votes, cell.strict), total=n * total,
                  sequential=most_at(n, cell.sequential))  # fmt: skip
    for agree in AGREE:
        solved, taken = stop_at(agree, cell.votes, cell.strict)
        orders = (np.arange(samples)[:, None] + np.arange(samples)) % samples  # (order, place)
        drawn = np.arange(samples) < taken[:, :, None]
        tokens = (cell.total[:, orders] * drawn).sum(axis=2).mean(axis=1)
        means = [sum(replay(_samples(cell, place, [sample]), costs, 1) for sample in range(taken[place, 0]))
                 for place in places if costs]  # fmt: skip
        yield row(f"until {agree} of {samples} agree", dict.fromkeys(SHOWN, float(np.mean(means)))
                  if means else {}, accuracy=solved.mean(axis=1), total=tokens, sequential=tokens)


def _samples(cell: Cell, place: int, samples: range | list[int]) -> list[list[Part]]:
    """Serial rollouts of a problem as threads that begin together."""
    return [[Part(int(cell.prompt[place, n]), int(cell.sampled[place, n]), [])] for n in samples]


def costs_of(given: Mapping[str, Mapping[str, float]]) -> Costs:
    """Returns the costs that a file of latencies has, whose numbers are keys of JSON."""
    return Costs(**{name: {int(size): seconds for size, seconds in table.items()}
                    for name, table in given.items()})  # fmt: skip


def draw_controllers(rows: list[Row], notes: list[str]) -> Figure:
    figure, (axes,) = style.new_figure(width=8.4, height=1.0 + 0.24 * len(rows))
    axes.set_axis_off()

    def line(row: Row) -> list[str]:
        value, low, high = (100 * row[f"accuracy{end}"] for end in ("", "_low", "_high"))
        seconds = (row[f"seconds_{devices}"] for devices in SHOWN)
        return [row["controller"], f"{value:.1f} [{low:.1f}, {high:.1f}]", f"{row['total']:,.0f}",
                f"{row['sequential']:,.0f}", *("–" if s is None else f"{1000 * s:.1f}" for s in seconds)]

    header = ["", "accuracy (%)", "total tokens", "sequential",
              *(f"ms, {devices} device{'s' * (devices > 1)}" for devices in SHOWN)]
    table = axes.table([line(row) for row in rows], colLabels=header, colWidths=[2.4, 1.6, 1, 1, 1, 1, 1],
                       cellLoc="left", colLoc="left", edges="horizontal", bbox=Bbox.unit())  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(7.5)
    return figure


def of_laboratory(params: Params) -> bool:
    """Whether a scale has a policy of another reward, which the table ends with."""
    return bool(rivals(params, "reward"))


CONTROLLERS = Exhibit("controllers", controllers_rows, draw_controllers, """Controllers of how much is
    decoded, from the same checkpoints. Votes are over samples of SoS+ at T = 1, all at once (cons@n), or one
    after another until some agree; all else is greedy: SoS+, APR asked for so many children (or whose
    parents go on at the first success), and APR that decides itself, before and after RL. Milliseconds a
    problem: the timed ones, replayed through measured costs of steps.""", of_laboratory)


def children_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per kind of join, number of children asked for and devices.

    `per_solved` are seconds for each solved problem; `within` says whether it takes no longer than SoS+,
    greedy and unconditioned.
    """
    serial = evidence.latency(Key("sos_plus", "sft", 0.0), "modelled") or {}
    found: list[Row] = []
    for join in ("all", "any"):
        for asked in evidence.conditions("apr", "sft", 0.0, join):
            key = Key("apr", "sft", 0.0, asked, join)
            if asked is None or not (seconds := evidence.latency(key, "modelled")):
                continue
            solved = evidence.measured(accuracy=accuracy(evidence.cells[key]))
            for devices in map(str, DEVICES):
                found.append({"join": join, "children": asked, "devices": int(devices), **solved,
                              "seconds": seconds[devices],
                              "per_solved": seconds[devices] / max(solved["accuracy"], 1e-9),
                              "within": int(seconds[devices] <= serial.get(devices, 0.0))})  # fmt: skip
    return found


def best(rows: list[Row], devices: int, join: str) -> dict[str, Any]:
    """Returns the numbers of children that solve the most within SoS+'s time, None if there are none, and
    that take the least time for each solved problem."""
    shown = [row for row in rows if (row["devices"], row["join"]) == (devices, join)]
    quick = [row for row in shown if row["within"]]
    most, least = max(quick, key=lambda row: row["accuracy"], default={}), min(
        shown, key=lambda row: row["per_solved"])  # fmt: skip
    return {"within": most.get("children"), "per_solved": least["children"]}


def draw_children(rows: list[Row], notes: list[str]) -> Figure:
    joins = {"all": "waiting for all", "any": "first success"}
    joins = {join: label for join, label in joins.items() if any(row["join"] == join for row in rows)}
    figure, panels = style.new_figure(len(joins), width=8.4 if len(joins) > 1 else 5.6, height=3.6)
    for axes, (join, label) in zip(panels, joins.items(), strict=True):
        for place, devices in enumerate(DEVICES):
            named, where = f"{devices} device{'s' * (devices > 1)}", {"devices": devices, "join": join}
            colour = list(style.COLOURS.values())[place]
            series = style.Series(named, where, colour, {"marker": "."})
            style.draw_series(axes, rows, "seconds", "accuracy", series,
                              lambda row: row["children"] if row["devices"] == 1 else None)
        found = {devices: best(rows, devices, join) for devices in DEVICES}
        for key, said in (("within", "the most solved in SoS+'s time"),
                          ("per_solved", "the least time for each solved problem")):
            numbers = ", ".join(f"{'–' if its[key] is None else its[key]}" for its in found.values())
            notes.append(f"{label.capitalize()}, children with {said}, by devices: {numbers}.")
        axes.set_title(label)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds per problem")
        style.percent_axis(axes)
    style.legend_above(figure, columns=5)
    return figure


CHILDREN = Exhibit("children", children_rows, draw_children, """Accuracy of APR after SFT, greedy, asked for
    so many children (numbers), against modelled seconds per problem on 1, 2, 4, 8 and 16 devices.""",
    of_laboratory)  # fmt: skip
