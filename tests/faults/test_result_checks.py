"""The checks of a run's files, on a real run with one thing changed at a time: each must be found."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apr.core.errors import DataError
from apr.core.files import read_json, write_json
from apr.core.hashes import hash_tree
from apr.pipeline.plan import load_scale
from apr.results.checks import check_results

EVALUATION = "data/eval/sft/apr.parquet"
TEACHER = "data/teacher/sos_plus.parquet"
"""Has right answers, which models of the smoke scale may not give."""


@pytest.fixture
def results(made, tmp_path):
    """A copy of a whole run, without its weights."""
    for folder in ("data", "results"):
        ignored = shutil.ignore_patterns("*.safetensors", "traces", "tokenizer")
        shutil.copytree(made.path / folder, tmp_path / folder, ignore=ignored)
    return tmp_path


@pytest.fixture
def check(made, results):
    params = load_scale("default", made.path)
    return partial(check_results, params, results, results / "counts.json")


def change(path: Path, edit) -> None:
    """`edit(rows)` changes the rows of a Parquet file in place."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def set_value(name, value, where=lambda row: True):
    """Sets a column of the first row `where` it can be set; `value` may be a function of the row."""

    def edit(rows):
        row = next(row for row in rows if where(row))
        row[name] = value(row) if callable(value) else value

    return edit


def swap(rows):
    rows[0], rows[1] = rows[1], rows[0]


def leak(rows, test):
    """A training problem becomes a test problem."""
    rows[3]["numbers"], rows[3]["target"] = test["numbers"][::-1], test["target"]


def test_a_run_as_it_is_passes_and_says_what_was_looked_at(check, results, made):
    check()
    counts = json.loads((results / "counts.json").read_text())
    assert counts == json.loads((made.path / "results/checks.json").read_text())
    files = [*(made.path / "data/eval").rglob("*.parquet"), *(made.path / "data/teacher").rglob("*.parquet")]
    assert counts["evaluation rows"] == sum(pq.read_metadata(path).num_rows for path in files)
    assert counts["problems"] == sum(
        pq.read_metadata(path).num_rows for path in (made.path / "data/problems").rglob("*.parquet")
    )
    assert counts["latencies"] > 0 and counts["numbers of results"] > 500


def alone(row):
    return row["children"] == 0


MUTATIONS = {
    "a row is lost": (EVALUATION, lambda rows: rows.pop(), "rows instead of"),
    "a row is there twice": (EVALUATION, lambda rows: rows.append(rows[-1]), "rows instead of"),
    "a row replaces another": (EVALUATION, lambda rows: rows.__setitem__(1, rows[0]), "row 1: "),
    "rows out of order": (EVALUATION, swap, "row 0: "),
    "another model's row": (EVALUATION, set_value("model", "sos"), "row 0: model is 'sos' instead of 'apr'"),
    "a fault becomes a success": (
        EVALUATION, set_value("strict", True, lambda row: not row["strict"]), "verdict True, ",
    ),
    "an answer is edited": (
        TEACHER, set_value("answer", "1 + 1 = 2", lambda row: row["strict"]), "verdict True, True of '1 + 1",
    ),
    "done without an answer": (EVALUATION, set_value("status", "done", lambda row: row["answer"] is None),
                               "done without an answer"),
    "tokens are lost": (EVALUATION, set_value("total", lambda row: row["total"] - 1), "total = sampled"),
    "a child is not counted": (
        EVALUATION, set_value("threads", lambda row: row["threads"] + 1), "threads = children + 1",
    ),
    "shorter than its chain": (
        EVALUATION, set_value("sequential", lambda row: row["total"] + 1), "sequential <= total",
    ),
    "a chain without children is cut": (
        EVALUATION, set_value("sequential", 0, alone), "a thread alone is sequential",
    ),
    "beyond the window": (EVALUATION, set_value("longest", 10**6), "longest <= window"),
    "more faulty threads than threads": (
        EVALUATION, set_value("malformed_threads", 100), "faulty threads <= threads",
    ),
    "a success becomes a fault": (
        TEACHER, set_value("strict", False, lambda row: row["strict"]), "verdict False, True of ",
    ),
    "the lenient verdict": (TEACHER, set_value("lenient", lambda row: not row["lenient"]), "verdict"),
    "an unsolvable test problem": ("data/problems/test.parquet", set_value("target", 10**6), "no solution"),
    "a split of another size": ("data/problems/validation.parquet", lambda rows: rows.pop(), "validation: "),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_row_is_found(check, results, name):
    path, edit, said = MUTATIONS[name]
    change(results / path, edit)
    with pytest.raises(DataError, match=re.escape(said)):
        check()
    assert not (results / "counts.json").exists()


def test_a_test_problem_among_the_training_problems_is_found(check, results):
    (test,) = pq.read_table(results / "data/problems/test.parquet").slice(5, 1).to_pylist()
    change(results / "data/problems/train.parquet", partial(leak, test=test))
    with pytest.raises(DataError, match="train-0000003: the same problem as test-0000005"):
        check()


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda entry: entry["problems"][1].update(decode_seconds=1e9), "+ 1000000000.0 s within"),
        (lambda entry: entry["problems"][1].update(seconds=float("nan")), "s within nan s"),
        (lambda entry: entry["problems"][1].update(cpu_seconds=-1.0), "s, -1.0 s of CPU"),
        (lambda entry: entry["problems"].pop(), "other problems than the first"),
        (lambda entry: entry["problems"].reverse(), "other problems than the first"),
        (lambda entry: entry.update(join="some"), "other conditions than the sweeps'"),
        (lambda entry: entry["p95"].update(seconds=1.5), "p50 and p95 are not those of its problems"),
    ],
)
def test_a_changed_latency_is_found(check, results, edit, said):
    path = results / "data/latency.json"
    measured = read_json(path)
    edit(measured["models"]["sft/apr"]["conditions"][0])
    write_json(path, measured)
    with pytest.raises(DataError, match=re.escape(said)):
        check()


@pytest.mark.parametrize(
    "path, before, after, said",
    [
        ("results/figures/fig4a.csv", "\n", "\n1.0,", "fig4a.csv: line 2 is not what the evaluations say"),
        ("results/claims.csv", "equal_tokens", "equal_token", "claims.csv: line"),
        ("results/metrics.json", 'accuracy_greedy": ', 'accuracy_greedy": 1', "metrics.json"),
        ("results/metrics.json", "{", '{"made_up": 1,', "made_up comes from nowhere"),
    ],
)  # fmt: skip
def test_a_changed_number_is_found(check, results, path, before, after, said):
    text = (results / path).read_text()
    assert before in text
    (results / path).write_text(text.replace(before, after, 1))
    with pytest.raises(DataError, match=re.escape(said)):
        check()


def test_a_missing_figure_is_found(check, results):
    (results / "results/figures/table1.csv").unlink()
    with pytest.raises(DataError, match=r"table1.csv: 0 lines instead of \d+"):
        check()


def test_the_run_fails_where_the_checks_do(made):
    """An evaluation is forged together with its seal, so that nothing but its content is wrong."""
    path, seal = made.path / EVALUATION, made.path / f"{EVALUATION}.recipe"
    kept = path.read_bytes(), seal.read_text()
    change(path, set_value("malformed_threads", 100))
    write_json(seal, read_json(seal) | {"outputs": hash_tree(path, path.parent)})
    try:
        command = ("snakemake", "--cores", "2", "--", "results/checks.json.recipe")
        assert "Error in rule checks" in made.run(*command, fails=True)
        said = (made.path / "logs/checks.log").read_text()
        assert f"apr: error: 1 fault in the results: {EVALUATION}: row 0: not so: faulty threads" in said
    finally:
        path.write_bytes(kept[0])
        seal.write_text(kept[1])
        made.run("git", "checkout", "-q", "--", ".")
    assert not made.planned()
