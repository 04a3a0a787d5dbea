"""Bad input ends in one line that names the file or the key, and a non-zero exit, whatever verb meets it."""

import json
import shutil

import pytest

from apr.cli.main import main
from apr.core.errors import ParamsError
from apr.core.files import write_rows
from apr.evaluation.sweep import evaluate as evaluate_directly
from apr.pipeline.plan import load_scale
from apr.tasks.countdown.problem import PROBLEM_SCHEMA

TEST = "data/problems/test.parquet"
MODEL = "data/models/sft/apr"


@pytest.fixture
def root(made, tmp_path, monkeypatch):
    """Where copies of what an evaluation reads lie, to break."""
    monkeypatch.chdir(made.path)
    for path in ("data/problems", MODEL):
        shutil.copytree(made.path / path, tmp_path / path)
    return tmp_path


@pytest.fixture
def evaluate(root, capsys):
    """Runs the job on what lies in `root`, which it must refuse; the last line of its output."""

    def run():
        assert main(["run", "evaluate/sft/apr", "--root", str(root)]) == 2
        output = capsys.readouterr().err
        assert "Traceback" not in output and not (root / "data/eval").exists()
        return output.splitlines()[-1]

    return run


def test_missing_parquet(root, evaluate):
    (root / TEST).unlink()
    assert evaluate() == f"apr: error: {root / TEST}: no such file"


def test_truncated_parquet(root, evaluate):
    (root / TEST).write_bytes((root / TEST).read_bytes()[:-20])
    assert evaluate().startswith(f"apr: error: {root / TEST}: not a readable Parquet file")


def test_unsolvable_problem(root, evaluate):
    write_rows(root / TEST, [{"problem_id": "p", "numbers": [1, 1, 1], "target": 50}], PROBLEM_SCHEMA)
    assert evaluate() == f"apr: error: {root / TEST}: problem 'p' has no solution: [1, 1, 1] -> 50"


def test_more_numbers_than_the_language_can_say(root, evaluate):
    rows = [{"problem_id": f"p{i}", "numbers": [1, 2, 3, i], "target": 6 + i} for i in range(6)]
    write_rows(root / TEST, rows, PROBLEM_SCHEMA)
    assert evaluate().startswith("apr: error: 4 numbers, (0, 1, 2, 3), in a problem; allowed")


def test_checkpoint_without_tokenizer(root, evaluate):
    (root / MODEL / "tokenizer.json").unlink()
    assert evaluate().startswith(f"apr: error: {root / MODEL}: no tokenizer here")


def test_tokenizer_that_does_not_fit_the_checkpoint(root, evaluate):
    config = json.loads((root / MODEL / "config.json").read_text())
    (root / MODEL / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    message = evaluate()
    assert message.startswith(f"apr: error: {root / MODEL}: the tokenizer has ") and "vocabulary 7" in message


def test_what_was_made_from_other_settings_is_not_read(made, root, evaluate):
    before = made.set("sft.learning_rate", 1e-5)
    try:
        assert evaluate().endswith("sft/apr was not made from the settings wanted now; make it first")
    finally:
        made.set("sft.learning_rate", before)


def test_window_smaller_than_a_prompt(root):
    row = {"numbers": [100001, 100002, 100003], "target": 300006}  # by digits
    write_rows(root / TEST, [{"problem_id": f"p{i}", **row} for i in range(6)], PROBLEM_SCHEMA)
    params = load_scale("default")
    params = params.model_copy(update={"grammar": params.grammar.model_copy(update={"window": 16})})
    with pytest.raises(ParamsError, match="grammar.window: 16 is not allowed; allowed: more than the "):
        evaluate_directly(params, "apr", "sft", root / TEST, root / MODEL, root / "out")
