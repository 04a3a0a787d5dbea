"""Evaluation files in the real schema, with verdicts and token counts that are chosen by hand."""

import numpy as np
import pytest

from apr.core.files import write_json, write_rows
from apr.core.params import load_params
from apr.evaluation.points import ModelId, evaluated, points
from apr.evaluation.results import EVAL_SCHEMA, LEDGER


def make_row(model, stage, problem, point, kind, **columns):
    """A solved root of 100 tokens without children, unless `columns` says otherwise."""
    conditioned = point.condition is not None
    answered = {"status": "done", "answer": "1 + 1 = 2", "expression": "(1 + 1)", "strict": True,
                "lenient": True, "reason": "solved"}  # fmt: skip
    counts = dict.fromkeys(LEDGER, 0) | {"sampled": 100, "total": 100, "sequential": 100, "longest": 108,
                                         "prompt": 8, "threads": 1}  # fmt: skip
    return {"model": model, "stage": stage, "problem_id": f"test-{problem:07d}",
            "condition_kind": kind if conditioned else None, "condition_amount": point.condition,
            "temperature": point.temperature, "sample": point.sample, "join": point.join,
            **answered, **counts, **columns}  # fmt: skip


def write_job(params, folder, stage, model, columns):
    """`columns(problem, point)` are what differs from a solved root."""
    its = ModelId(stage, model)
    rows = [make_row(model, stage, problem, point, its.condition_kind(params, point.condition or 0),
                     **columns(problem, point))
            for problem in range(params.eval.problems) for point in points(params, ModelId(stage, model))]
    write_rows(folder / "eval" / stage / f"{model}.parquet", rows, EVAL_SCHEMA)


def plausible(stage, model):
    """Accuracy and tokens that grow with children and with RL, seeded."""
    skill = {"sos": 0.25, "sos_plus": 0.35, "sos_plus_wide": 0.3, "sos_plus_selected": 0.34}.get(model, 0.3)

    def columns(problem, point):
        rng = np.random.default_rng([problem, *model.encode(), *str(point).encode(), stage == "rl"])
        ease = np.random.default_rng(problem).random()
        if model.startswith("apr"):
            wanted = 6 + 2 * (stage == "rl") if point.condition is None else point.condition
            children = int(max(0, wanted + rng.integers(-1, 2)))
            chance = skill + 0.035 * children
        else:
            children, chance = 0, skill + 0.04 * (stage == "rl")
        strict = bool(0.6 * ease + 0.4 * rng.random() < chance - 0.08 * point.temperature)
        root, child = int(rng.integers(80, 140)), int(rng.integers(90, 160))
        longest = (max(root, child) if children else root + 40) + 10
        if point.condition and not model.startswith("apr"):
            longest = min(longest, point.condition)
        votes = f"(1 + {rng.integers(3)})" if rng.random() < 0.8 else None
        return {"strict": strict, "lenient": strict or rng.random() < 0.05, "children": children,
                "threads": children + 1, "total": root + child * children, "sampled": root + child * children,
                "sequential": root + (child if children else 0), "longest": longest,
                "expression": "(right)" if strict else votes}  # fmt: skip

    return columns


@pytest.fixture(scope="session")
def params():
    """Those of the default scale, but for the number of problems."""
    params = load_params("params.yaml")
    return params.model_copy(update={"eval": params.eval.model_copy(update={"problems": 60})})


@pytest.fixture(scope="session")
def row():
    return make_row


@pytest.fixture(scope="session")
def write():
    return write_job


@pytest.fixture(scope="session")
def artefacts(params, tmp_path_factory):
    """Every evaluation, latency and training metric that the sweeps of params.yaml name, in a folder."""
    folder, latencies = tmp_path_factory.mktemp("data"), {}
    for stage, model in evaluated(params):
        write_job(params, folder, stage, model, plausible(stage, model))
        greedy = [point for point in points(params, ModelId(stage, model)) if point.temperature == 0]
        entries = [
            {"condition": point.condition, "join": point.join,
             "modelled": {str(n): 0.3 + 0.2 / n for n in (1, 2, 4, 8, 16)},
             "p50": {"seconds": 0.5}, "p95": {"seconds": 0.9},
             "problems": [{"seconds": 0.3 + 0.01 * i + 0.02 * (point.condition or 6)} for i in range(20)]}
            for point in greedy
        ]  # fmt: skip
        latencies[f"{stage}/{model}"] = {"conditions": entries}
        write_json(folder / "models" / stage / model / "metrics.json", {"loss": 0.25, "reward": 0.5})
    write_json(folder / "latency.json", {"models": latencies})
    return folder
