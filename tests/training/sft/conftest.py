"""Real traces of three-number problems, and parameters that train on them in a second or two."""

import pytest

from apr.core.params import overlay, parse_params
from apr.tasks import make_tokenizer
from apr.tasks.problems import make_problems
from apr.training.traces import make_traces

VALUES = {
    "problems": {"numbers": 3, "train": 12, "validation": 1, "test": 1},
    "grammar": {"window": 192},
    "traces": {"problems": 12, "methods": {"apr": {"solver": "apr", "beam": [1, 3]}}},
    "model": {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 1, "ffn": 48},
    "sft": {
        "tokens": {"apr": 2400}, "row_tokens": 200, "rows_per_step": 2, "learning_rate": 1e-2,
        "checkpoint_steps": 2,
    },
    "rl": {"policies": {}, "steps": 1},
    "engine": {"device": "cpu"},
    "eval": {"problems": 1, "latency_problems": 1,
             "sweeps": {"one": {"models": ["apr"], "temperatures": [1.0]}}},
}  # fmt: skip


@pytest.fixture(scope="session")
def make_params():
    """Parameters with `sections` put over these."""
    return lambda **sections: parse_params(overlay(VALUES, sections))


@pytest.fixture(scope="session")
def data(tmp_path_factory, make_params):
    """A directory with `tokenizer` and `traces.parquet`."""
    root, params = tmp_path_factory.mktemp("sft"), make_params()
    make_problems(params, root / "problems")
    make_tokenizer(params, root / "tokenizer")
    make_traces(
        params, "apr", root / "problems" / "train.parquet", root / "tokenizer", root / "traces.parquet"
    )
    return root
