"""Bad input ends in one line that names the file or the key, and a non-zero exit, whatever verb meets it."""

import json
import shutil

import pytest

from apr.cli.main import main
from apr.core.files import write_rows
from apr.tasks.countdown.problem import PROBLEM_SCHEMA

TEST = "data/problems/test.parquet"
MODEL = "data/models/sft/apr"


@pytest.fixture
def evaluate(made, tmp_path, monkeypatch, capsys):
    """Runs the verb on the given inputs, which it must refuse; the last line of its output."""

    def run(problems=TEST, checkpoint=MODEL):
        paths = ("--problems", str(problems), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"))
        assert main(["evaluate", "--model", "apr", "--stage", "sft", *paths]) == 2
        output = capsys.readouterr().err
        assert "Traceback" not in output and not (tmp_path / "out").exists()
        return output.splitlines()[-1]

    monkeypatch.chdir(made.path)
    return run


@pytest.fixture
def checkpoint(made, tmp_path):
    """A copy to break."""
    return shutil.copytree(made.path / MODEL, tmp_path / "model")


def test_missing_parquet(evaluate):
    assert evaluate(problems="absent.parquet") == "apr: error: absent.parquet: no such file"


def test_truncated_parquet(made, evaluate, tmp_path):
    path = tmp_path / "problems.parquet"
    path.write_bytes((made.path / TEST).read_bytes()[:-20])
    assert evaluate(problems=path).startswith(f"apr: error: {path}: not a readable Parquet file")


def test_unsolvable_problem(evaluate, tmp_path):
    path = tmp_path / "problems.parquet"
    write_rows(path, [{"problem_id": "p", "numbers": [1, 1, 1], "target": 50}], PROBLEM_SCHEMA)
    assert evaluate(problems=path) == f"apr: error: {path}: problem 'p' has no solution: [1, 1, 1] -> 50"


def test_more_numbers_than_the_language_can_say(evaluate, tmp_path):
    path = tmp_path / "problems.parquet"
    rows = [{"problem_id": f"p{i}", "numbers": [1, 2, 3, i], "target": 6 + i} for i in range(6)]
    write_rows(path, rows, PROBLEM_SCHEMA)
    assert evaluate(problems=path).startswith("apr: error: 4 numbers, (0, 1, 2, 3), in a problem; allowed")


def test_checkpoint_without_tokenizer(evaluate, checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    assert evaluate(checkpoint=checkpoint).startswith(f"apr: error: {checkpoint}: no tokenizer here")


def test_tokenizer_that_does_not_fit_the_checkpoint(evaluate, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    message = evaluate(checkpoint=checkpoint)
    assert message.startswith(f"apr: error: {checkpoint}: the tokenizer has ") and "vocabulary 7" in message


def test_window_smaller_than_a_prompt(made, evaluate, tmp_path):
    path = tmp_path / "problems.parquet"
    row = {"numbers": [1000001, 1000002, 1000003], "target": 3000006}  # by digits
    write_rows(path, [{"problem_id": f"p{i}", **row} for i in range(6)], PROBLEM_SCHEMA)
    made.set("grammar.window", 16)
    try:
        message = "apr: error: grammar.window: 16 is not allowed; allowed: more than the "
        assert evaluate(problems=path).startswith(message)
    finally:
        made.run("git", "checkout", "-q", "--", "params.yaml")
