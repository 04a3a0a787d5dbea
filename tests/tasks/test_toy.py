"""Another task than the project's goes through all of it; and nothing else knows which task it is."""

import re
from pathlib import Path

import pytest

from apr.core.errors import ParamsError
from apr.core.files import read_rows
from apr.core.params import load_params, parse_params
from apr.evaluation.results import EVAL_SCHEMA
from apr.evaluation.sweep import evaluate
from apr.evaluation.teacher import evaluate_teacher
from apr.pipeline.plan import select
from apr.pipeline.stages import jobs, keys_of
from apr.tasks import make_tokenizer, open_task
from apr.tasks.problems import make_problems, read_problems
from apr.training.rl.log import read_log
from apr.training.rl.train import train_rl
from apr.training.sft.train import train_sft
from apr.training.traces import TRACE_SCHEMA, make_traces

ROOT = Path(__file__).parents[2]
VALUES = {
    "task": "tests.tasks.toy",
    "problems": {"train": 200, "validation": 10, "test": 20},
    "grammar": {"window": 32, "token_step": 8, "number_tokens": 9, "max_children": 2},
    "traces": {"problems": 200, "methods": {"serial": {}, "parallel": {"parallel": True}}},
    "model": {"layers": 2, "hidden": 64, "heads": 2, "kv_heads": 2, "ffn": 64},
    "sft": {"tokens": {"serial": 80000, "parallel": 100000}, "row_tokens": 512, "rows_per_step": 1,
            "child_share": 1.0, "learning_rate": 3e-3},
    "rl": {"policies": {"serial": {"method": "serial"}, "parallel": {"method": "parallel", "children": 2}},
           "steps": 2, "prompts": 4, "group": 2, "rows_per_device": 4},
    "engine": {"slots": 32, "max_tokens": 64, "device": "cpu"},
    "eval": {"problems": 20, "latency_problems": 1, "sweeps": {
        "greedy": {"models": ["serial", "parallel"], "stages": ["sft", "rl"], "temperatures": [0.0]},
        "asked": {"models": ["parallel"], "conditions": [0, 2], "temperatures": [0.0]},
    }},
}  # fmt: skip


def test_a_task_of_ones_own_goes_from_its_problems_to_evaluations(tmp_path):
    params = parse_params(VALUES)
    make_problems(params, tmp_path / "problems")
    make_tokenizer(params, tmp_path / "tokenizer")
    files = [tmp_path / f"problems/{split}.parquet" for split in ("train", "validation", "test")]
    train, validation, test = files
    found = {}
    for method in ("serial", "parallel"):
        traces, out = tmp_path / f"{method}.parquet", tmp_path / method
        make_traces(params, method, train, tmp_path / "tokenizer", traces)
        roots = [row for row in read_rows(traces, TRACE_SCHEMA) if row["role"] == "root"]
        assert {row["children"] for row in roots} == ({0, 2} if method == "parallel" else {0})
        assert {row["condition_kind"] for row in roots} == {None, params.traces.methods[method].counts}
        train_sft(params, method, traces, tmp_path / "tokenizer", out / "sft")
        train_rl(params, method, train, validation, out / "sft", out / "rl")
        assert [line["step"] for line in read_log(out / "rl" / "log.jsonl")] == [1, 2]
        evaluate_teacher(params, method, test, tmp_path / "tokenizer", tmp_path / "teacher.parquet")
        assert all(row["strict"] for row in read_rows(tmp_path / "teacher.parquet", EVAL_SCHEMA))
        for stage in ("sft", "rl"):
            evaluate(params, method, stage, test, out / stage, tmp_path / "evaluated.parquet")
            found[method, stage] = read_rows(tmp_path / "evaluated.parquet", EVAL_SCHEMA)
    numbers = {problem.id: problem.number for problem in read_problems(open_task(params), test)}
    for rows in found.values():
        for row in rows:
            assert row["strict"] == (row["answer"] == ("even", "odd")[numbers[row["problem_id"]] % 2])
        assert sum(row["strict"] for row in rows) > 0.8 * len(rows), "it has learnt to answer"
    asked = {row["condition_amount"]: row["children"] for row in found["parallel", "sft"]}
    assert asked[0] == 0 and asked[2] == 2, "and to spawn where that is asked for"


def test_its_jobs_declare_what_its_own_code_reads():
    params = parse_params(VALUES)
    values, found = params.model_dump(mode="json"), {}
    for name, (stage, names) in jobs(params).items():
        found[name] = select(values, stage.keys(params), keys_of(params, names))
    assert "problems" not in found["tokenizer"] | found["traces/serial"], "its words and solvers need none"


def test_tasks_are_chosen_by_name_and_have_settings_of_their_own():
    assert parse_params(VALUES).problems.most == 999
    assert load_params(ROOT / "params.yaml").task == "countdown"
    for task in ("count", "os", "tests.tasks", "../x", "", None, ["countdown"], 3):
        with pytest.raises(ParamsError, match="^params: task: .* is not allowed; allowed: countdown, .*or a"):
            parse_params(VALUES | {"task": task})
    with pytest.raises(ParamsError, match="problems.target_range: unknown key"):
        parse_params(VALUES | {"problems": VALUES["problems"] | {"target_range": [1, 2]}})


def test_nothing_but_the_papers_figures_and_cards_knows_which_task_it_is():
    own = ROOT / "apr" / "tasks" / "countdown"
    allowed = {ROOT / "apr" / "core" / "params.py": 1}  # the default
    for path in sorted((ROOT / "apr").rglob("*.py")):
        if not path.is_relative_to(own) and not {"figures", "publish"} & set(path.parts):
            named = re.findall("countdown", path.read_text(), re.IGNORECASE)
            assert len(named) == allowed.get(path, 0), path
