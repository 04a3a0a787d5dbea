"""Multiplication: its traces, verdicts and labels by hand; and all jobs of a tiny scale in turn."""

from itertools import product
from random import Random

import pytest
from ruamel.yaml import YAML

from apr.core.errors import DataError, ParamsError
from apr.core.files import read_rows
from apr.core.params import load_params, parse_params, partial_params
from apr.core.recipe import make
from apr.core.settings import overlay, read_yaml
from apr.evaluation.results import EVAL_SCHEMA
from apr.language import Malformed
from apr.pipeline.plan import Plan
from apr.pipeline.run import call
from apr.tasks import open_task
from apr.tasks.multiplication.problem import Problem
from apr.tasks.multiplication.solver import carried
from apr.tasks.problems import generate_problems, read_problems
from apr.tasks.task import Label
from tests.conftest import ROOT

PRESET = ROOT / "presets/multiplication.yaml"
PARAMS = load_params(ROOT / "params.yaml", PRESET)
TASK = open_task(PARAMS)
WORDS = TASK.language.vocabulary
PROBLEM = Problem("p", 37, 42)
SMALL = {
    "problems": {"digits": [1, 2], "test_digits": [1, 3], "train": 300, "validation": 10, "test": 20},
    "traces": {"problems": 300}, "grammar": {"window": 96},
    "model": {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 2, "ffn": 64},
    "sft": {"tokens": {"serial": 20000, "parallel": 20000}, "row_tokens": 512},
    "rl": {"steps": 2, "prompts": 2, "group": 2, "rows_per_device": 2, "warmup_steps": 0},
    "engine": {"slots": 32, "max_tokens": 128, "device": "cpu"},
    "eval": {"problems": 10, "latency_problems": 2, "bootstrap": 50},
}


def written(trace):
    return [WORDS.decode(thread.ids) for thread in trace]


def test_a_trace_by_hand_of_either_kind():
    serial, parallel = PARAMS.traces.methods["serial"], PARAMS.traces.methods["parallel"]
    assert (serial.spawns, parallel.spawns) == (0, 5)
    # 37 * 2 = 74: 7 * 2 = 14, 3 * 2 + 1 = 7; 37 * 40 = 1480: 7 * 4 = 28, 3 * 4 + 2 = 14; 4, 15, 4 + 1, 1.
    assert written(TASK.demonstrate(PROBLEM, serial, Random(0))) == [
        "<root> 7 3 * 2 4 go * 2 14 7 0 0 = 4 7 0 0 * 0 4 0 28 14 1 = 0 8 4 1 + 4 15 5 1 answer 4 5 5 1 end"
    ]
    trace = TASK.demonstrate(PROBLEM, parallel, Random(0), children=2)
    assert written(trace) == [
        "<root> 7 3 * 2 4 go spawn 7 3 * #2 2 #1 0 4 run joined 4 7 0 0 joined 0 8 4 1 resume "
        "+ 4 15 5 1 answer 4 5 5 1 end",
        "<child> 7 3 * 2 go 14 7 0 0 join 4 7 0 0 end",
        "<child> 7 3 * 0 4 go 0 28 14 1 join 0 8 4 1 end",
    ]
    assert [thread.parent for thread in trace] == [-1, 0, 0]
    assert [WORDS.decode(trace[1].ids[: trace[1].ends[0]])] == ["<child> 7 3 * 2 go"]
    assert carried([14, 6, 0, 0]) == [14, 7, 0, 0] and carried([99, 99]) == [99, 108]


def test_children_are_as_near_as_can_be_to_what_is_asked_for():
    method = PARAMS.traces.methods["parallel"].model_copy(update={"children": 4})
    spawned = {asked: len(TASK.demonstrate(Problem("p", 1234, 5678), method, Random(0), asked)) - 1
               for asked in range(5)}  # fmt: skip
    assert spawned == {0: 0, 1: 0, 2: 0, 3: 4, 4: 4}
    assert len(TASK.demonstrate(Problem("p", 12345, 67890), method, Random(0), 4)) == 1, "of more digits none"
    drawn = [len(TASK.demonstrate(PROBLEM, method, Random(seed))) - 1 for seed in range(200)]
    assert {*drawn} == {0, 2} and 160 < drawn.count(2) < 196, "nine in ten"


@pytest.mark.parametrize("left, right", [(0, 0), (7, 8), (90, 10), (10, 90), (999, 999), (4321, 9999)])
def test_every_trace_is_right_and_so_is_each_child(left, right):
    problem = TASK.read(f"{left} * {right}")
    product = " ".join(str(left * right).zfill(2 * problem.size)[::-1])
    for method in PARAMS.traces.methods.values():
        root, *children = TASK.demonstrate(problem, method.model_copy(update={"promising": 1.0}), Random(0))
        assert TASK.verify(problem, root.ids)[:4] == (True, True, "solved", product)
        assert len(children) == (problem.size if method.spawns else 0)
        assert all(token != WORDS.ids["<unk>"] for thread in (root, *children) for token in thread.ids)
        for child in children:
            returned = TASK.language.syntax.returned(child.ids)
            assert TASK.label(problem, child.ids[: child.ends[0]], returned) == Label(True, True, True)


@pytest.mark.parametrize(
    ("said", "strict", "lenient", "reason"),
    [
        ("answer 4 5 5 1 end", True, True, "solved"),
        ("answer 1 2 3 4 end + 1 answer 4 5 5 1 end", True, True, "solved"),
        ("answer 4 5 5 1 0 end", False, True, "too many or too few noughts"),
        ("answer 1 5 5 4 end", False, False, "answer is 4551, not 1554"),
        ("answer 4 5 5 end", False, False, "answer is 554, not 1554"),
        ("answer 5 5 5 1 end", False, False, "answer is 1555, not 1554"),
        ("answer none end", False, False, "declares no solution"),
    ],
)
def test_a_verdict_by_hand(said, strict, lenient, reason):
    ids = TASK.prompt(PROBLEM) + WORDS.encode(said)
    assert TASK.verify(PROBLEM, ids)[:3] == (strict, lenient, reason)


@pytest.mark.parametrize("said", [
    "answer end", "answer 4 15 5 1 end", "answer 4 5 + 5 1 end", "+ 4 15 5 1 end", "answer 1554 end",
    "answer 4 5 5 1 none end", "answer 4 5 5 1",
])  # fmt: skip
def test_what_is_no_number_is_malformed(said):
    assert isinstance(TASK.verify(PROBLEM, TASK.prompt(PROBLEM) + WORDS.encode(said)), Malformed)


@pytest.mark.parametrize(
    ("prompt", "returned", "expected"),
    [
        ("7 3 * 2", "4 7 0 0", (True, True, True)),
        ("7 3 * 0 4", "0 8 4 1", (True, True, True)),
        ("7 3 * 0 4", "8 4 1 0", (True, True, False)),
        ("7 3 * 2", "4 7", (True, True, False)),
        ("7 3 * 2", "none", (True, True, False)),
        ("7 3 * 2", None, (True, True, False)),
        ("7 3 * 4", "8 4 1 0", (False, True, True)),  # 4 stands at the second place
        ("3 7 * 2", "6 4 1 0", (False, True, True)),
        ("7 3 * 2 4", "4 5 5 1", (False, False, False)),  # the whole problem is no partial product
        ("7 3 * 0 0 4", "none", (False, False, False)),
        ("7 3 2", "none", (False, False, False)),
        ("7 3 *", "none", (False, False, False)),
        ("7 + 3 * 2", "none", (False, False, False)),
    ],
)
def test_a_label_by_hand(prompt, returned, expected):
    ids = WORDS.encode(f"<child> {prompt} go")
    assert TASK.label(PROBLEM, ids, returned and WORDS.encode(returned)) == Label(*expected)


def test_problems_have_the_digits_that_are_asked_for_and_none_comes_twice():
    small = PARAMS.model_copy(update={"problems": PARAMS.problems.model_copy(
        update={"train": 300, "validation": 50, "test": 50, "test_digits": None})})  # fmt: skip
    drawn = [problem for problems in generate_problems(open_task(small)).values() for problem in problems]
    assert len({problem[1:] for problem in drawn}) == 400
    sizes = [len(str(problem.left)) for problem in drawn]
    assert sizes == [len(str(problem.right)) for problem in drawn] == [problem.size for problem in drawn]
    assert all(100 < sizes.count(size) < 170 for size in (2, 3, 4)) and {*sizes} == {2, 3, 4}
    more = small.model_copy(update={"problems": small.problems.model_copy(update={"test_digits": (5, 6)})})
    found = {split: {problem.size for problem in problems}
             for split, problems in generate_problems(open_task(more)).items()}  # fmt: skip
    assert found == {"test": {5, 6}, "validation": {2, 3, 4}, "train": {2, 3, 4}}


def test_what_is_no_problem_is_refused():
    assert TASK.read(" 12 x 345 ") == TASK.read("12*345") == Problem("problem", 12, 345)
    assert str(PROBLEM) == "37 × 42"
    assert WORDS.decode(TASK.prompt(TASK.read("12*345"))) == "<root> 2 1 0 * 5 4 3 go"
    for text in ("12", "12 + 3", "12 * -3", "1" * 101 + " * 2", ""):
        with pytest.raises(DataError, match="not a problem; allowed: two numbers"):
            TASK.read(text)
    for left, right in ((None, 1), (-1, 1), (1, 10**9)):
        with pytest.raises(DataError, match="is not a problem"):
            TASK.problem({"problem_id": "p", "left": left, "right": right})
    values = overlay(read_yaml(ROOT / "params.yaml"), read_yaml(PRESET), ("problems", "methods", "tokens",
                                                                        "policies", "sweeps"))  # fmt: skip
    for key, digits in product(("digits", "test_digits"), ([0, 2], [2, 10], [3, 2])):
        with pytest.raises(ParamsError, match=rf"problems.{key}: \[\d+, \d+\] is not allowed; allowed: "):
            parse_params(overlay(values, {"problems": {key: digits}}))
    few = parse_params(overlay(values, {"problems": {"digits": [1, 1], "test_digits": None}}))
    with pytest.raises(ParamsError, match="no new problem in 10000 draws after 100; allowed: fewer"):
        generate_problems(open_task(few))


def test_all_jobs_of_a_tiny_scale(tmp_path):
    (tmp_path / "apr").symlink_to(ROOT / "apr")
    whole = ("problems", "methods", "tokens", "policies", "sweeps")
    values = overlay(overlay(read_yaml(ROOT / "params.yaml"), read_yaml(PRESET), whole), SMALL)
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(values, file)
    plan = Plan(repository=tmp_path)
    for job in plan.jobs.values():
        partial_params(job.recipe["params"])
        with make(job):
            call(job)
    assert not Plan(repository=tmp_path).stale
    data = tmp_path / "data"
    problems = {problem.id: problem for problem in read_problems(TASK, data / "problems/test.parquet")}
    teacher = read_rows(data / "teacher/parallel.parquet", EVAL_SCHEMA)
    assert teacher and all(row["strict"] for row in teacher)
    evaluated = sorted((data / "eval").glob("*/*.parquet"))
    assert [path.stem for path in evaluated] == ["difference", "parallel", "parallel", "serial"]
    for row in [*teacher, *(row for path in evaluated for row in read_rows(path, EVAL_SCHEMA))]:
        _, left, right = problems[row["problem_id"]]
        assert not row["strict"] or int(row["expression"]) == left * right
    assert (tmp_path / "results/report.html").is_file() and (tmp_path / "results/claims.md").is_file()
