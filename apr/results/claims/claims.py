"""What the paper claims, each as one number with its interval, a threshold set beforehand, and a status.

All accuracies are the strict verifier's on the test problems. A claim is a pure function of the evidence.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from typing import NamedTuple

import numpy as np

from apr.evaluation.results import Cell, Key
from apr.evaluation.statistics import (
    Interval,
    cons_at,
    interval,
    paired_difference,
    paired_ratio,
    rank_correlation,
)
from apr.results import paper
from apr.results.evidence import Evidence, accuracy, mean

SUPPORTED, DIRECTION, REFUSED, UNMEASURED = "supported", "direction only", "not supported", "not measured"
STATUSES = (SUPPORTED, DIRECTION, REFUSED, UNMEASURED)
"""From the most to the least that can be said."""
ABSOLUTE = ("ratio", "%")
"""Units in which no value means "no effect": the threshold alone decides."""


class Measured(NamedTuple):
    found: Interval
    cells: tuple[Cell, ...]
    note: str = ""
    fair: bool = True
    """Whether the two sides stand as the claim says; if not, it is not supported."""


class Claim(NamedTuple):
    id: str
    sentence: str
    unit: str
    threshold: float
    """The least value that supports the claim, in the unit of `Measured`: 0.2 for 20 points."""
    paper: float | None
    measure: Callable[[Evidence], Measured | None]
    """None, and notes in `Evidence.missing`, if something was not measured."""

    def status(self, measured: Measured | None) -> str:
        """One of `STATUSES`."""
        if measured is None:
            return UNMEASURED
        if not measured.fair or (self.unit not in ABSOLUTE and measured.found.low <= 0):
            return REFUSED
        if measured.found.value >= self.threshold:
            return SUPPORTED
        return REFUSED if self.unit in ABSOLUTE else DIRECTION


def _cells(evidence: Evidence, *keys: Key) -> tuple[Cell, ...] | None:
    found = [evidence.cell(key) for key in keys]
    cells = tuple(cell for cell in found if cell is not None)
    return cells if len(cells) == len(keys) else None


def _resamples(evidence: Evidence) -> tuple[int, int]:
    """Number and seed of the bootstrap."""
    return evidence.params.eval.bootstrap, evidence.params.seed


def _greedy(evidence: Evidence, model: str, stage: str, most: bool = False) -> Key:
    """Unconditioned, or asked for the most children."""
    return Key(model, stage, 0.0, evidence.params.grammar.max_children if most else None)


def of_teacher(evidence: Evidence, method: str, most: bool = False) -> Measured | None:
    """Accuracy of the SFT model over that of its solver, given the same window."""
    keys = (_greedy(evidence, method, stage, most) for stage in ("sft", "solver"))
    if cells := _cells(evidence, *keys):
        model, teacher = map(accuracy, cells)
        found = paired_ratio(model, teacher, *_resamples(evidence))
        return Measured(found, cells, f"{model.mean():.1%} of the teacher's {teacher.mean():.1%}")
    return None


def over_sos_plus(
    evidence: Evidence, model: str, stage: str, most: bool = False, rival: str = "sos_plus"
) -> Measured | None:
    """Accuracy minus that of SoS+ (the model `rival`) at the condition with which it is best."""
    conditions = evidence.conditions(rival, stage, 0.0) or [None]
    serial = [Key(rival, stage, 0.0, condition) for condition in conditions]
    cells = _cells(evidence, _greedy(evidence, model, stage, most), *serial)
    if cells is None:
        return None
    best = max(cells[1:], key=lambda cell: accuracy(cell).mean())
    note = f"{accuracy(cells[0]).mean():.1%} against {accuracy(best).mean():.1%}"
    found = paired_difference(accuracy(cells[0]), accuracy(best), *_resamples(evidence))
    return Measured(found, (cells[0], best), note)


def equal_tokens(evidence: Evidence) -> Measured | None:
    """T = 1: APR minus cons@n of SoS+, n the least with which SoS+ decodes no fewer tokens than APR.

    APR is asked for the most children that the samples of SoS+ can match.
    """
    asked = [k for k in evidence.conditions("apr", "sft", 1.0) if k is not None]
    asked = asked or [evidence.params.grammar.max_children]
    cells = _cells(evidence, Key("sos_plus", "sft", 1.0), *(Key("apr", "sft", 1.0, k) for k in asked))
    if cells is None:
        return None
    serial, *parallel = cells
    for children, cell in reversed(list(zip(asked, parallel, strict=True))):
        n = max(1, ceil(mean(cell, "total").mean() / mean(serial, "total").mean()))
        if n <= serial.samples:
            voted = cons_at(n, serial.votes, serial.strict)
            found = paired_difference(accuracy(cell), voted, *_resamples(evidence))
            return Measured(found, (cell, serial), f"{children} children asked for, cons@{n}")
    evidence.missing.append(f"sft/sos_plus T=1 samples {serial.samples + 1} to {n}")
    return None


def equal_latency(evidence: Evidence, join: str) -> Measured | None:
    """The best SoS+ point that was timed, against the best APR point that takes no longer on average.

    `join`: what APR's parents wait for.
    """
    serial, parallel = list(_timed(evidence, "sos_plus", "all")), list(_timed(evidence, "apr", join))
    if not serial or not parallel:
        return None
    limit, rival, _ = max(serial, key=lambda point: (accuracy(point[1]).mean(), -point[0]))
    quick = [point for point in parallel if point[0] <= limit]
    seconds, cell, asked = (max(quick, key=lambda point: accuracy(point[1]).mean()) if quick
                            else min(parallel, key=lambda point: point[0]))  # fmt: skip
    condition = "unconditioned" if asked is None else f"{asked} children asked for"
    note = f"{condition}, {1000 * seconds:.0f} ms against {1000 * limit:.0f} ms"
    note += "" if quick else ": no APR point is as quick"
    found = paired_difference(accuracy(cell), accuracy(rival), *_resamples(evidence))
    return Measured(found, (cell, rival), note, fair=bool(quick))


def _timed(evidence: Evidence, model: str, join: str) -> Iterator[tuple[float, Cell, int | None]]:
    """Mean seconds per problem, the cell, and the condition, of each that was timed after SFT."""
    measured = evidence.latencies.get(("sft", model), {"conditions": []})["conditions"]
    if not measured:
        evidence.missing.append(f"latency of sft/{model}")
    for entry in measured:
        condition, seconds = entry["condition"], [row["seconds"] for row in entry["problems"]]
        if entry["join"] == join and (cell := evidence.cell(Key(model, "sft", 0.0, condition, join))):
            yield float(np.mean(seconds)), cell, condition


def by_rl(
    evidence: Evidence, column: str = "strict", against: str | None = None, temperature: float = 1.0
) -> Measured | None:
    """What RL adds to a column of APR (unconditioned), less what it adds to the model `against`.

    At T = 1 the policy is the one that RL trains; greedy decoding shows only what changes its mode.
    """
    models = ("apr", against) if against else ("apr",)
    keys = [Key(model, stage, temperature) for model in models for stage in ("sft", "rl")]
    if cells := _cells(evidence, *keys):
        before, after, *other = (mean(cell, column) for cell in cells)
        if other:
            before = before + other[1] - other[0]
        return Measured(paired_difference(after, before, *_resamples(evidence)), cells)
    return None


def conditioning_children(evidence: Evidence) -> Measured | None:
    """Rank correlation of children asked for and used, over all rollouts at T = 1."""
    asked = range(evidence.params.grammar.max_children + 1)
    if cells := _cells(evidence, *(Key("apr", "sft", 1.0, children) for children in asked)):
        used = range(1 + max(int(cell.children.max()) for cell in cells))
        counted = [[(cell.children == n).sum(axis=1) for n in used] for cell in cells]
        counts = np.moveaxis(np.array(counted), 2, 0)
        return Measured(rank_correlation(counts, *_resamples(evidence)), cells)
    return None


def conditioning_tokens(evidence: Evidence) -> Measured | None:
    """Share of SoS+ rollouts within the token budget asked for; one of a whole window cannot be exceeded."""
    budgets = {key: cell for key, cell in evidence.cells.items() if key[:2] == ("sos_plus", "sft")
               and key.condition and key.condition < evidence.params.grammar.window}  # fmt: skip
    if not budgets:
        evidence.missing.append("sft/sos_plus conditioned on tokens below the window")
        return None
    kept = [cell.longest <= key.condition for key, cell in budgets.items()]
    note = "budgets " + ", ".join(map(str, sorted({key.condition for key in budgets if key.condition})))
    found = interval(np.concatenate(kept, axis=1).mean(axis=1), *_resamples(evidence))
    return Measured(found, tuple(budgets.values()), note)


_SOS, _APR, _HELD = (paper.FIG7[name] for name in ("SoS+", "APR", "APR held"))
CLAIMS = (
    Claim("teacher_sos_plus", "SoS+ solves what its teacher solves", "ratio", 0.85, None,
          partial(of_teacher, method="sos_plus")),
    Claim("teacher_apr", "APR solves what its teacher solves", "ratio", 0.85, None,
          partial(of_teacher, method="apr")),
    Claim("teacher_apr_most", "APR asked for the most children solves what its teacher then solves", "ratio",
          0.85, None, partial(of_teacher, method="apr", most=True)),
    Claim("apr_over_sos_plus", "APR with the most children beats SoS+ at the same window", "points", 0.20,
          _HELD[0] - _SOS[0], partial(over_sos_plus, model="apr", stage="sft", most=True)),
    Claim("apr_over_sos_plus_free", "APR unconditioned beats SoS+ at the same window", "points", 0.20,
          _APR[0] - _SOS[0], partial(over_sos_plus, model="apr", stage="sft")),
    Claim("apr_over_sos_plus_rl", "APR with the most children beats SoS+, both after RL", "points", 0.20,
          _HELD[1] - _SOS[1], partial(over_sos_plus, model="apr_max", stage="rl", most=True)),
    Claim("apr_over_sos_plus_free_rl", "APR unconditioned beats SoS+, both after RL", "points", 0.20,
          _APR[1] - _SOS[1], partial(over_sos_plus, model="apr", stage="rl")),
    Claim("equal_sequences", "APR unconditioned beats SoS+ trained on as many sequences", "points", 0.20,
          None, partial(over_sos_plus, model="apr", stage="sft", rival="sos_plus_sequences")),
    Claim("equal_problems", "APR unconditioned beats SoS+ trained on as many problems", "points", 0.20,
          None, partial(over_sos_plus, model="apr", stage="sft", rival="sos_plus_problems")),
    Claim("equal_tokens", "APR asked for many children beats cons@n of SoS+ at equal total tokens, T = 1",
          "points", 0.08, paper.FIG4A["APR at 20k tokens"] - paper.FIG4A["SoS+ cons@7 at 20k"], equal_tokens),
    Claim("equal_latency", "APR whose parents go on at the first success beats SoS+ at equal latency, one "
          "problem at a time", "points", 0.10, None, partial(equal_latency, join="any")),
    Claim("equal_latency_all", "APR whose parents wait for all children beats SoS+ at equal latency, one "
          "problem at a time", "points", 0.10, paper.FIG6["APR at 5 s"] - paper.FIG6["SoS+ at 5 s"],
          partial(equal_latency, join="all")),
    Claim("rl_apr", "RL makes APR more accurate, T = 1", "points", 0.05, None, by_rl),
    Claim("rl_apr_greedy", "RL makes APR more accurate, greedy", "points", 0.05, _APR[1] - _APR[0],
          partial(by_rl, temperature=0.0)),
    Claim("rl_more", "RL gives APR more than it gives SoS+, T = 1", "points", 0.0,
          (_APR[1] - _APR[0]) - (_SOS[1] - _SOS[0]), partial(by_rl, against="sos_plus")),
    Claim("rl_more_greedy", "RL gives APR more than it gives SoS+, greedy", "points", 0.0,
          (_APR[1] - _APR[0]) - (_SOS[1] - _SOS[0]),
          partial(by_rl, against="sos_plus", temperature=0.0)),
    Claim("rl_children", "RL makes APR spawn more children, T = 1", "children", 0.0,
          paper.FIG5["children"][1] - paper.FIG5["children"][0], partial(by_rl, column="children")),
    Claim("conditioning_children", "APR spawns as many children as it is asked for", "Spearman",
          0.8, None, conditioning_children),
    Claim("conditioning_tokens", "SoS+ stays within the token budget it is asked for", "%", 0.95, None,
          conditioning_tokens),
)  # fmt: skip
