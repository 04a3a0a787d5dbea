"""What the paper claims, each as one number with its interval, a threshold set beforehand, and a status.

All accuracies are the strict verifier's on the test problems. A claim is a pure function of the evidence.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

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
POINTS = "percentage points"
ABSOLUTE = ("ratio", "%")
"""Units in which no value means "no effect": the threshold alone decides."""


class NotMeasured(Exception):
    """What a claim needs is not there; `Evidence.missing` says what."""


class Measured(NamedTuple):
    found: Interval
    cells: Sequence[Cell]
    note: str = ""
    fair: bool = True
    """Whether the two sides stand as the claim says; if not, it is not supported."""


class Claim(NamedTuple):
    id: str
    sentence: str
    unit: str
    threshold: float
    """The least value that supports the claim, as `Measured` has it: 0.2 for 20 percentage points."""
    paper: float | None
    how: Callable[..., Measured]
    details: Mapping[str, Any] = {}
    needs: frozenset[str] = frozenset()
    """The task, methods and policies without which a scale does not have it."""

    def measure(self, evidence: Evidence) -> Measured | None:
        """Returns None, with notes in `Evidence.missing`, if something was not measured."""
        try:
            return self.how(evidence, **self.details)
        except NotMeasured:
            return None

    def status(self, measured: Measured | None) -> str:
        """Returns one of `STATUSES`."""
        if measured is None:
            return UNMEASURED
        if not measured.fair or (self.unit not in ABSOLUTE and measured.found.low <= 0):
            return REFUSED
        if measured.found.value >= self.threshold:
            return SUPPORTED
        return REFUSED if self.unit in ABSOLUTE else DIRECTION


def cells_of(evidence: Evidence, *keys: Key) -> list[Cell]:
    """Notes all that is missing before it raises `NotMeasured`."""
    found = [cell for key in keys if (cell := evidence.cell(key))]
    if len(found) < len(keys):
        raise NotMeasured
    return found


def _greedy(evidence: Evidence, model: str, stage: str, most: bool) -> Key:
    """Unconditioned, or asked for the most children."""
    return Key(model, stage, 0.0, evidence.params.grammar.max_children if most else None)


def _solved(cell: Cell) -> float:
    return accuracy(cell).mean()


def of_teacher(evidence: Evidence, method: str, most: bool = False) -> Measured:
    """Returns the accuracy of the SFT model over that of its solver, given the same window."""
    cells = cells_of(evidence, *(_greedy(evidence, method, stage, most) for stage in ("sft", "solver")))
    model, teacher = map(accuracy, cells)
    found = paired_ratio(model, teacher, *evidence.bootstrap)
    return Measured(found, cells, f"{model.mean():.1%} of the teacher's {teacher.mean():.1%}")


def over_sos_plus(
    evidence: Evidence, model: str, stage: str, most: bool = False, rival: str = "sos_plus"
) -> Measured:
    """Returns accuracy minus that of SoS+ (the model `rival`) at the condition with which it is best."""
    conditions = evidence.conditions(rival, stage, 0.0) or [None]
    serial = [Key(rival, stage, 0.0, condition) for condition in conditions]
    own, *others = cells_of(evidence, _greedy(evidence, model, stage, most), *serial)
    best = max(others, key=_solved)
    found = paired_difference(accuracy(own), accuracy(best), *evidence.bootstrap)
    return Measured(found, (own, best), f"{_solved(own):.1%} against {_solved(best):.1%}")


def equal_tokens(evidence: Evidence) -> Measured:
    """Returns APR minus cons@n of SoS+, T = 1, n the least with which SoS+ decodes no fewer tokens than APR.

    APR is asked for the most children that the samples of SoS+ can match.
    """
    asked = [k for k in evidence.conditions("apr", "sft", 1.0) if k is not None]
    asked = asked or [evidence.params.grammar.max_children]
    keys = [Key("sos_plus", "sft", 1.0), *(Key("apr", "sft", 1.0, k) for k in asked)]
    serial, *parallel = cells_of(evidence, *keys)
    for children, cell in reversed(list(zip(asked, parallel, strict=True))):
        n = max(1, ceil(mean(cell, "total").mean() / mean(serial, "total").mean()))
        if n <= serial.samples:
            voted = cons_at(n, serial.votes, serial.strict)
            found = paired_difference(accuracy(cell), voted, *evidence.bootstrap)
            return Measured(found, (cell, serial), f"{children} children asked for, cons@{n}")
    evidence.missing.append(f"sft/sos_plus T=1 samples {serial.samples + 1} to {n}")
    raise NotMeasured


def equal_latency(evidence: Evidence, join: str) -> Measured:
    """Returns the best APR that takes no longer on average than the best SoS+ that was timed, minus that.

    `join`: what APR's parents wait for.
    """
    serial, parallel = _seconds(evidence, "sos_plus", "all"), _seconds(evidence, "apr", join)
    if not serial or not parallel:
        raise NotMeasured
    solved = {key: _solved(evidence.cells[key]) for key in serial | parallel}
    rival = max(serial, key=lambda key: (solved[key], -serial[key]))
    quick = [key for key in parallel if parallel[key] <= serial[rival]]
    best = max(quick, key=solved.__getitem__) if quick else min(parallel, key=parallel.__getitem__)
    asked = "unconditioned" if best.condition is None else f"{best.condition} children asked for"
    note = f"{asked}, {1000 * parallel[best]:.0f} ms against {1000 * serial[rival]:.0f} ms"
    note += "" if quick else ": no APR is as quick"
    own, other = evidence.cells[best], evidence.cells[rival]
    found = paired_difference(accuracy(own), accuracy(other), *evidence.bootstrap)
    return Measured(found, (own, other), note, fair=bool(quick))


def _seconds(evidence: Evidence, model: str, join: str) -> dict[Key, float]:
    """Mean seconds per problem of each cell that was timed after SFT."""
    found = {key: float(np.mean([row["seconds"] for row in timed["problems"]]))
             for key, timed in evidence.latencies.items()
             if key[:2] == (model, "sft") and key.join == join and evidence.cell(key)}  # fmt: skip
    if not found:
        evidence.missing.append(f"latency of sft/{model}")
    return found


def by_rl(
    evidence: Evidence, column: str = "strict", against: str | None = None, temperature: float = 1.0
) -> Measured:
    """Returns what RL adds to a column of APR (unconditioned), less what it adds to the model `against`.

    At T = 1 the policy is the one that RL trains; greedy decoding shows only what changes its mode.
    """
    models = ("apr", against) if against else ("apr",)
    cells = cells_of(evidence, *(Key(model, at, temperature) for model in models for at in ("sft", "rl")))
    before, after, *other = (mean(cell, column) for cell in cells)
    if other:
        before = before + other[1] - other[0]
    return Measured(paired_difference(after, before, *evidence.bootstrap), cells)


def conditioning_children(evidence: Evidence) -> Measured:
    """Returns the rank correlation of children asked for and used, over all rollouts at T = 1."""
    asked = range(evidence.params.grammar.max_children + 1)
    cells = cells_of(evidence, *(Key("apr", "sft", 1.0, children) for children in asked))
    used = range(1 + max(int(cell.children.max()) for cell in cells))
    counted = [[(cell.children == n).sum(axis=1) for n in used] for cell in cells]
    counts = np.moveaxis(np.array(counted), 2, 0)
    return Measured(rank_correlation(counts, *evidence.bootstrap), cells)


def conditioning_tokens(evidence: Evidence) -> Measured:
    """Returns the share of SoS+ rollouts within the token budget asked for, if it is below the window."""
    budgets = {key: cell for key, cell in evidence.cells.items() if key[:2] == ("sos_plus", "sft")
               and key.condition and key.condition < evidence.params.grammar.window}  # fmt: skip
    if not budgets:
        evidence.missing.append("sft/sos_plus conditioned on tokens below the window")
        raise NotMeasured
    kept = [cell.longest <= key.condition for key, cell in budgets.items()]
    note = "budgets " + ", ".join(map(str, sorted({key.condition for key in budgets if key.condition})))
    found = interval(np.concatenate(kept, axis=1).mean(axis=1), *evidence.bootstrap)
    return Measured(found, tuple(budgets.values()), note)


(_SOS, _SOS_RL), (_APR, _APR_RL), (_HELD, _HELD_RL) = (paper.FIG7[run] for run in ("SoS+", "APR", "APR held"))
_GAIN = _APR_RL - _APR
_MORE = _GAIN - (_SOS_RL - _SOS)
_CHILDREN = paper.FIG5["children"][1] - paper.FIG5["children"][0]
_TOKENS = paper.FIG4A["APR at 20k tokens"] - paper.FIG4A["SoS+ cons@7 at 20k"]
_LATENCY = paper.FIG6["APR at 5 s"] - paper.FIG6["SoS+ at 5 s"]
CLAIMS = (
    Claim("teacher_sos_plus", "SoS+ solves what its teacher solves", "ratio", 0.85, None,
          of_teacher, {"method": "sos_plus"}),
    Claim("teacher_apr", "APR solves what its teacher solves", "ratio", 0.85, None,
          of_teacher, {"method": "apr"}),
    Claim("teacher_apr_most", "APR asked for the most children solves what its teacher then solves", "ratio",
          0.85, None, of_teacher, {"method": "apr", "most": True}),
    Claim("apr_over_sos_plus", "APR with the most children beats SoS+ at the same window", POINTS, 0.20,
          _HELD - _SOS, over_sos_plus, {"model": "apr", "stage": "sft", "most": True}),
    Claim("apr_over_sos_plus_free", "APR unconditioned beats SoS+ at the same window", POINTS, 0.20,
          _APR - _SOS, over_sos_plus, {"model": "apr", "stage": "sft"}),
    Claim("apr_over_sos_plus_rl", "APR with the most children beats SoS+, both after RL", POINTS, 0.20,
          _HELD_RL - _SOS_RL, over_sos_plus, {"model": "apr_max", "stage": "rl", "most": True}),
    Claim("apr_over_sos_plus_free_rl", "APR unconditioned beats SoS+, both after RL", POINTS, 0.20,
          _APR_RL - _SOS_RL, over_sos_plus, {"model": "apr", "stage": "rl"}),
    Claim("equal_sequences", "APR unconditioned beats SoS+ trained on as many sequences", POINTS, 0.20, None,
          over_sos_plus, {"model": "apr", "stage": "sft", "rival": "sos_plus_sequences"}),
    Claim("equal_problems", "APR unconditioned beats SoS+ trained on as many problems", POINTS, 0.20, None,
          over_sos_plus, {"model": "apr", "stage": "sft", "rival": "sos_plus_problems"}),
    Claim("equal_tokens", "APR asked for many children beats cons@n of SoS+ at equal total tokens, T = 1",
          POINTS, 0.08, _TOKENS, equal_tokens),
    Claim("equal_latency", "APR whose parents go on at the first success beats SoS+ at equal latency, one "
          "problem at a time", POINTS, 0.10, None, equal_latency, {"join": "any"}),
    Claim("equal_latency_all", "APR whose parents wait for all children beats SoS+ at equal latency, one "
          "problem at a time", POINTS, 0.10, _LATENCY, equal_latency, {"join": "all"}),
    Claim("rl_apr", "RL makes APR more accurate, T = 1", POINTS, 0.05, None, by_rl),
    Claim("rl_apr_greedy", "RL makes APR more accurate, greedy", POINTS, 0.05, _GAIN,
          by_rl, {"temperature": 0.0}),
    Claim("rl_more", "RL gives APR more than it gives SoS+, T = 1", POINTS, 0.0, _MORE,
          by_rl, {"against": "sos_plus"}),
    Claim("rl_more_greedy", "RL gives APR more than it gives SoS+, greedy", POINTS, 0.0, _MORE,
          by_rl, {"against": "sos_plus", "temperature": 0.0}),
    Claim("rl_children", "RL makes APR spawn more children, T = 1", "children", 0.0, _CHILDREN,
          by_rl, {"column": "children"}),
    Claim("conditioning_children", "APR spawns as many children as it is asked for", "Spearman",
          0.8, None, conditioning_children),
    Claim("conditioning_tokens", "SoS+ stays within the token budget it is asked for", "%", 0.95, None,
          conditioning_tokens),
)  # fmt: skip
