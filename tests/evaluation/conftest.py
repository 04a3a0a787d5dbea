"""A small world: its problems, and a checkpoint of random weights that speaks the thread language."""

import pytest

from apr.core.params import parse_params
from apr.tasks import make_tokenizer, open_task
from apr.tasks.problems import make_problems
from apr.training.checkpoint import new_model, save_checkpoint


def build_params(**sections):
    values = {
        "seed": 3,
        "problems": {"number_range": [1, 9], "target_range": [10, 20], "train": 4, "validation": 1,
                     "test": 5},
        "grammar": {"number_tokens": 20, "window": 64, "max_children": 3},
        "traces": {"problems": 4, "methods": {"sos_plus": {"solver": "sos_plus", "beam": [1, 2]},
                                              "apr": {"solver": "apr", "beam": [1, 3]}}},
        "model": {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 2, "ffn": 64},
        "sft": {"tokens": {"sos_plus": 1, "apr": 1}},
        "rl": {"policies": {"apr_max": {"method": "apr", "children": 3}}, "steps": 1},
        "engine": {"slots": 8, "max_tokens": 80, "device": "cpu"},
        "eval": {"problems": 4, "latency_problems": 2, "bootstrap": 100, "sweeps": {
            "cool": {"models": ["apr", "sos_plus"], "conditions": [None, 2], "temperatures": [0.0, 1.0]},
            "samples": {"models": ["apr"], "temperatures": [0.0, 1.0], "samples": 3},
            "held": {"models": ["apr_max"], "stages": ["rl"], "conditions": [3], "temperatures": [0.0]},
        }},
    }  # fmt: skip
    return parse_params(values | sections)


@pytest.fixture(scope="session")
def tiny_params():
    """Takes whole sections to put in place of the usual ones."""
    return build_params


@pytest.fixture(scope="session")
def params():
    return build_params()


@pytest.fixture(scope="session")
def world(params, tmp_path_factory):
    """(problems file, checkpoint directory)"""
    root = tmp_path_factory.mktemp("world")
    make_problems(params, root / "problems")
    make_tokenizer(params, root / "tokenizer")
    vocabulary = open_task(params).language.vocabulary
    model = new_model(params.model, vocabulary.size, vocabulary.pad, params.grammar.window, seed=1)
    save_checkpoint(model, root / "tokenizer", root / "model")
    return root / "problems" / "test.parquet", root / "model"
