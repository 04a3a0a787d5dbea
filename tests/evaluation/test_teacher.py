"""The teacher: its verdicts are the verifier's, its tokens are counted as a model's are."""

import pytest

from apr.core.files import read_rows
from apr.evaluation.points import Point, teachers
from apr.evaluation.results import EVAL_SCHEMA, Key, read_cells
from apr.evaluation.teacher import draw, evaluate_teacher, judge_trace
from apr.language import build_language
from apr.language import events as ev
from apr.tasks.countdown import Operation, Problem, read_problems, verify
from apr.tasks.countdown.search import Trace, TraceThread
from apr.training.traces import encode_thread

PROBLEM = Problem("p", (2, 3, 4), 10)
PRODUCT, SUM = Operation(3, "*", 4, 12), Operation(3, "+", 4, 7)
PATH = (PRODUCT, Operation(12, "-", 2, 10))


@pytest.fixture(scope="module")
def language(params):
    return build_language(params.grammar, params.problems)


def by_hand():
    lines = [ev.Line(1, PRODUCT, (2, 12)), ev.Line(1, SUM, (2, 7))]
    nodes = [ev.Node(10, (line,)) for line in lines]
    root = [ev.RootPrompt(10, (2, 3, 4), None), ev.Spawn(tuple(nodes)), ev.Joined((PATH, None)),
            ev.Answer(PATH)]  # fmt: skip
    first = [ev.ChildPrompt(nodes[0]), ev.Leaf("+", 14, ">"), ev.Leaf("-", 10, "!"), ev.Join(PATH)]
    second = [ev.ChildPrompt(nodes[1]), ev.Leaf("+", 9, "<"), ev.Join(None)]
    threads = [TraceThread(-1, root, PATH), TraceThread(0, first, PATH), TraceThread(0, second)]
    return Trace(PROBLEM, threads)


def test_the_ledger_is_counted_as_a_models_is(language):
    row = judge_trace(language, by_hand(), window=64)
    root, node, path = 7, 1 + 8, 11  # <root> 10 :0 2 3 4 go; 10 :1 3 * 4 = 12 2 12; two operations and ","
    spawn, answer = 1 + 2 * (1 + node) + 1, 1 + path + 1
    joined = (1 + path) + (1 + 1) + 1
    first, second = 3 + 3 + 1 + path + 1, 3 + 1 + 1 + 1
    assert row == {
        "status": "done", "answer": "3 * 4 = 12, 12 - 2 = 10", "expression": "((3 * 4) - 2)", "strict": True,
        "lenient": True, "reason": "solved", "prompt": root + 2 * (1 + node + 1),
        "sampled": spawn + answer + first + second, "injected": joined,
        "total": spawn + answer + first + second, "sequential": spawn + answer + first,
        "longest": root + spawn + joined + answer, "children": 2, "depth": 1, "malformed_threads": 0,
        "truncated_threads": 0, "threads": 3,
    }  # fmt: skip


def test_a_thread_beyond_the_window_loses_the_problem(language):
    longest = judge_trace(language, by_hand(), 64)["longest"]
    assert judge_trace(language, by_hand(), longest)["strict"]
    row = judge_trace(language, by_hand(), longest - 1)
    assert (row["strict"], row["status"], row["truncated_threads"]) == (False, "truncated", 1)
    trace = by_hand()
    trace.threads[1].events[1:1] = [ev.Leaf("+", 14, ">")] * 20  # a child alone
    row = judge_trace(language, trace, longest)
    assert (row["strict"], row["status"], row["truncated_threads"]) == (False, "truncated", 1)


def test_teachers_are_what_rl_starts_from_and_a_sweep_names(params):
    assert teachers(params) == ["apr"]


@pytest.mark.parametrize("method", ["sos_plus", "apr"])
def test_verdicts_are_those_of_the_verifier(params, language, world, tmp_path, method):
    evaluate_teacher(params, method, *world, tmp_path / "a.parquet")
    problems = {problem.id: problem for problem in read_problems(world[0])}
    rows = read_rows(tmp_path / "a.parquet", EVAL_SCHEMA)
    for row in rows:
        point = Point(row["condition_amount"], 0.0, row["sample"])
        trace = draw(problems[row["problem_id"]], point, method, params)
        path = trace.threads[0].path
        fits = all(len(encode_thread(language, thread)[0]) <= 64 for thread in trace.threads)
        solved = path is not None and verify(trace.problem, path).strict
        assert row["strict"] == (solved and fits) and row["stage"] == "solver"
        assert row["children"] == trace.children and row["total"] == row["sampled"]
    samples = {key: cell.samples for key, cell in read_cells([tmp_path / "a.parquet"]).items()}
    conditioned = {Key("apr", "solver", 0.0, 2): 2} if method == "apr" else {}
    assert samples == {Key(method, "solver", 0.0): 8} | conditioned
    evaluate_teacher(params, method, *world, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_children_asked_for_are_had_or_the_closest_number(params, tiny_params):
    wide = tiny_params(grammar={"max_children": 10}, sft={"tokens": {"apr": 1}}, traces={
        "problems": 4, "methods": {"apr": {"solver": "apr", "beam": [1, 10]}},
    }, eval={
        "problems": 1, "latency_problems": 1,
        "sweeps": {"a": {"models": ["apr"], "temperatures": [0.0]}},
    })  # fmt: skip
    problem = Problem("q", (3, 5, 7, 9), 24)
    for asked in range(11):
        for sample in range(2):
            trace = draw(problem, Point(asked, 0.0, sample), "apr", wide)
            assert trace.children == (0 if asked == 1 else asked), "a single child is never spawned"
            assert trace.threads[0].events[0].condition.amount == asked
    assert draw(problem, Point(9, 0.0, 0), "apr", params).children == 3, "its beam is at most 3"
