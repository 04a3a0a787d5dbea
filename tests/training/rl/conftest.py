"""A tiny model that half knows how to add two numbers, sometimes by spawning, and problems for it."""

from contextlib import ExitStack
from threading import Lock

import pytest
import torch

from apr.core.errors import CheckpointError
from apr.core.files import write_rows
from apr.core.params import parse_params
from apr.engine.checkpoint import load_model
from apr.engine.servers.serve import EngineServer
from apr.engine.slots import SlotEngine
from apr.tasks import make_tokenizer, open_task
from apr.tasks.countdown.problem import PROBLEM_SCHEMA
from apr.training.checkpoint import new_model, save_checkpoint

PAIRS = [(1, 2), (1, 3), (2, 3), (1, 4)]
TEXTS = [
    "<root> {t} :0 {a} {b} go | answer {b} + {a} = {t} end",
    "<root> {t} :0 {a} {b} go | answer none end",
    "<root> {t} :0 {a} {b} go | spawn #2 {t} :1 {b} + {a} = {t} #1 {t} :1 {b} - {a} = {d} run "
    "| joined {b} + {a} = {t} joined none resume | answer {b} + {a} = {t} end",
    "<child> {t} :1 {b} + {a} = {t} go | join {b} + {a} = {t} end",
    "<child> {t} :1 {b} - {a} = {d} go | join none end",
]
"""Injected parts and sampled parts in turn."""


@pytest.fixture(scope="session")
def params():
    sweep = {"models": ["apr"], "temperatures": [1.0]}
    method = {"solver": "apr", "beam": [1, 2]}
    return parse_params({
        "problems": {"numbers": 2, "train": 4, "validation": 1, "test": 1},
        "grammar": {"number_tokens": 20, "window": 64},
        "traces": {"problems": 4, "methods": {"apr": method}},
        "model": {"architecture": "llama", "layers": 2, "hidden": 32, "heads": 2, "kv_heads": 2, "ffn": 64},
        "sft": {"tokens": {"apr": 1}},
        "rl": {
            "policies": {"apr": {"method": "apr", "kl": 0.05}}, "steps": 2, "prompts": 4, "group": 4,
            "rows_per_device": 4, "learning_rate": 1e-3, "checkpoint_steps": 1,
        },
        "engine": {"slots": 8, "device": "cpu"},
        "eval": {"problems": 1, "latency_problems": 1, "sweeps": {"one": sweep}},
    })  # fmt: skip


@pytest.fixture(scope="session")
def language(params):
    return open_task(params).language


NESTED = [
    *TEXTS[::2],
    "<child> {t} :1 {b} + {a} = {t} go | spawn {t} #2 {b} {a} #1 {a} run "
    "| joined {b} + {a} = {t} joined none resume | join {b} + {a} = {t} end",
    "<child> {t} {b} {a} go | join {b} + {a} = {t} end",
    "<child> {t} {a} go | join none end",
]
"""The same where a child may spawn too."""


@pytest.fixture(scope="session")
def checkpoint(params, language, tmp_path_factory):
    return taught(params, language, TEXTS, tmp_path_factory.mktemp("rl"))


@pytest.fixture(scope="session")
def nested_checkpoint(params, language, tmp_path_factory):
    return taught(params, language, NESTED, tmp_path_factory.mktemp("rl"))


def taught(params, language, texts, root):
    """Trained for a second by plain cross entropy on what a model would sample."""
    torch.set_num_threads(1)
    make_tokenizer(params, root / "tokenizer")
    vocabulary = language.vocabulary
    model = new_model(params.model, vocabulary.size, vocabulary.pad, params.grammar.window, 0)
    rows = []
    for a, b in PAIRS:
        for text in texts:
            parts = [vocabulary.encode(part) for part in
                     text.format(a=a, b=b, t=a + b, d=b - a).split("|")]  # fmt: skip
            ids = [token for part in parts for token in part]
            labels = [t if i % 2 else -100 for i, part in enumerate(parts) for t in part]
            rows.append((ids, labels))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    save_checkpoint(model, root / "tokenizer", root / "sft")
    return root / "sft"


@pytest.fixture(scope="session")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "train.parquet"
    rows = [
        {"problem_id": f"train-{i}", "numbers": pair, "target": sum(pair)} for i, pair in enumerate(PAIRS)
    ]
    write_rows(path, rows, PROBLEM_SCHEMA)
    return path


@pytest.fixture(scope="session")
def validation(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "validation.parquet"
    write_rows(path, [{"problem_id": "validation-0", "numbers": [2, 5], "target": 7}], PROBLEM_SCHEMA)
    return path


@pytest.fixture(scope="session")
def serve(checkpoint, language, params):
    """Starts a server of the checkpoint."""
    loading = Lock()

    def load(directory):
        if not (directory / "config.json").is_file():
            raise CheckpointError(f"{directory}: no such checkpoint directory")
        with loading:  # transformers does not load two models at once
            return load_model(directory, "cpu")

    def start():
        engine = SlotEngine(load(checkpoint), language.syntax.stop_ids, 8, params.grammar.window)
        return running.enter_context(EngineServer(engine, "tiny", load=load))

    with ExitStack() as running:
        yield start
