"""The teacher: its verdicts are the verifier's, its tokens are counted as a model's are."""

from itertools import accumulate, chain
from random import Random

import pytest

from apr.core.files import read_rows
from apr.evaluation.points import Point, teachers
from apr.evaluation.results import EVAL_SCHEMA, Key, read_cells
from apr.evaluation.teacher import as_rollout, draw, evaluate_teacher, judge_trace
from apr.language.tokenizer import load_language
from apr.tasks import open_task
from apr.tasks.countdown.problem import Problem
from apr.tasks.problems import read_problems
from apr.tasks.task import TraceThread

PROBLEM = Problem("p", (2, 3, 4), 10)
PATH = "3 * 4 = 12 , 12 - 2 = 10"
FIRST, SECOND = "10 :1 3 * 4 = 12 2 12", "10 :1 3 + 4 = 7 2 7"


@pytest.fixture(scope="module")
def task(params):
    return open_task(params)


def by_hand(task, *more):
    """A root and two children, the first of which says `more`."""
    steps = [
        ["<root> 10 :0 2 3 4 go", f"spawn #2 {FIRST} #1 {SECOND} run", f"joined {PATH} joined none resume",
         f"answer {PATH} end"],
        [f"<child> {FIRST} go", *more, "+ 14 >", "- 10 !", f"join {PATH} end"],
        [f"<child> {SECOND} go", "+ 9 <", "join none end"],
    ]  # fmt: skip
    threads = []
    for index, said in enumerate(steps):
        pieces = list(map(task.language.vocabulary.encode, said))
        ends = list(accumulate(map(len, pieces)))
        threads.append(TraceThread(min(index, 1) - 1, list(chain(*pieces)), ends, index < 2))
    return threads


def judged(task, trace, window):
    grammar = task.params.grammar.model_copy(update={"window": window})
    return judge_trace(open_task(task.params.model_copy(update={"grammar": grammar})), PROBLEM, trace)


def test_the_ledger_is_counted_as_a_models_is(task):
    row = judged(task, by_hand(task), 64)
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


def test_a_thread_beyond_the_window_loses_the_problem(task):
    longest = judged(task, by_hand(task), 64)["longest"]
    assert judged(task, by_hand(task), longest)["strict"]
    row = judged(task, by_hand(task), longest - 1)
    assert (row["strict"], row["status"], row["truncated_threads"]) == (False, "truncated", 1)
    row = judged(task, by_hand(task, *["+ 14 >"] * 20), longest)  # a child alone
    assert (row["strict"], row["status"], row["truncated_threads"]) == (False, "truncated", 1)


def test_a_nested_trace_is_counted_by_its_longest_chain(params):
    own = {"problems": params.problems.model_copy(update={"numbers": 4}),
           "grammar": params.grammar.model_copy(update={"number_tokens": 100})}  # fmt: skip
    task = open_task(params.model_copy(update=own))
    method = params.traces.methods["apr"].model_copy(
        update={"beam": (2, 2), "promising": 1.0, "depth": 2, "heuristic": "result"})  # fmt: skip
    problem = Problem("p", (1, 2, 4, 4), 10)
    rollout = as_rollout(task, problem, task.demonstrate(problem, method, Random(0)))
    assert [thread.depth for thread in rollout.threads] == [0, 1, 1, 2, 2, 2, 2]
    assert [[spawn.children for spawn in thread.spawns] for thread in rollout.threads] == [
        [[1, 2]], [[3, 4]], [[5, 6]], [], [], [], []]  # fmt: skip
    # A solution has 3 * 5 + 2 tokens, a message 1 + 5 + 1 or, of three numbers, 1 + 5 + 2; a leaf has 3.
    path, root, below = 17, 3 + 2 * 8 + 1, 3 + 7 + 1 + 2 * 7 + 1
    usage = rollout.usage
    found, failed = below + 1 + path + 1, below + 3
    leaves = [4 * 3 + 3, 4 * 3 + 3, 3 * 3 + 1 + path + 1, 3 * 3 + 3]
    assert usage.total == root + 1 + path + 1 + found + failed + sum(leaves)
    assert usage.sequential == root + 1 + path + 1 + found + leaves[2]
    assert usage.injected == 2 * (1 + path + 2 + 1) + 2 + 2 + 1
    assert (usage.children, usage.depth) == (6, 2)


def test_teachers_are_what_rl_starts_from_and_a_sweep_names(params):
    assert teachers(params) == ["apr"]


@pytest.mark.parametrize("method", ["sos_plus", "apr"])
def test_verdicts_are_those_of_the_verifier(params, world, tmp_path, method):
    evaluate_teacher(params, method, *world, tmp_path / "a.parquet")
    task = open_task(params, load_language(world[1]))
    problems = {problem.id: problem for problem in read_problems(task, world[0])}
    rows = read_rows(tmp_path / "a.parquet", EVAL_SCHEMA)
    for row in rows:
        point = Point(row["condition_amount"], 0.0, row["sample"])
        problem = problems[row["problem_id"]]
        trace = draw(task, problem, point, method)
        fits = all(len(thread.ids) <= 64 for thread in trace)
        solved = task.verify(problem, trace[0].ids).strict
        assert solved == trace[0].solved
        assert row["strict"] == (solved and fits) and row["stage"] == "solver"
        assert row["children"] == len(trace) - 1 and row["total"] == row["sampled"]
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
    problem, task = Problem("q", (3, 5, 7, 9), 24), open_task(wide)
    for asked in range(11):
        for sample in range(2):
            trace = draw(task, problem, Point(asked, 0.0, sample), "apr")
            assert len(trace) - 1 == (0 if asked == 1 else asked), "a single child is never spawned"
            prompt = trace[0].ids[: trace[0].ends[0]]
            assert task.language.vocabulary.decode(prompt).endswith(f" children {asked} go")
    assert len(draw(open_task(params), problem, Point(9, 0.0, 0), "apr")[1:]) == 3, "its beam is at most 3"
