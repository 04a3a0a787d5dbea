"""Policies that differ from the paper's in one thing, beside it, on the same problems."""

from typing import Literal

from apr.core.params import Params
from apr.evaluation.results import Key
from apr.evaluation.statistics import paired_ratio
from apr.results import paper
from apr.results.evidence import Evidence, Row, accuracy, mean

TEMPERATURES = {1.0: "T = 1", 0.0: "greedy"}


def rivals(params: Params, of: Literal["reward", "credit"]) -> list[str]:
    """Returns the policies with another reward, or credit, than the paper's, but its model and prompts."""
    policies = params.rl.policies
    base = policies.get(paper.POLICY)
    return [name for name, its in policies.items() if base and getattr(its, of) != getattr(base, of)
            and (its.method, its.amount) == (base.method, base.amount)]  # fmt: skip


def paired_rows(evidence: Evidence, of: Literal["reward", "credit"]) -> list[Row]:
    """Returns a row per temperature and policy, the paper's first; `gain` is in accuracy over the paper's,
    `saved` the share of its sequential tokens that is not needed, both paired by problem."""
    found = []
    for temperature in TEMPERATURES:
        base = evidence.cell(Key(paper.POLICY, "rl", temperature))
        for name in (paper.POLICY, *rivals(evidence.params, of)):
            if base is None or (cell := evidence.cell(Key(name, "rl", temperature))) is None:
                continue
            columns = {column: mean(cell, column) for column in ("children", "total", "sequential")}
            row = {"policy": name, of: getattr(evidence.params.rl.policies[name], of),
                   "temperature": temperature}  # fmt: skip
            row |= evidence.measured(accuracy=accuracy(cell), **columns)
            row |= evidence.spread(gain=accuracy(cell) - accuracy(base))
            ratio = paired_ratio(columns["sequential"], mean(base, "sequential"), *evidence.bootstrap)
            saved = (1 - ratio.value, 1 - ratio.high, 1 - ratio.low)
            found.append(row | dict(zip(("saved", "saved_low", "saved_high"), saved, strict=True)))
    return found
