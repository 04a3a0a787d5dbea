"""The solvers: legal and replayable events, solutions that verify, traces as worked out by hand."""

import hashlib

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from apr.core.errors import DataError
from apr.core.files import write_rows
from apr.core.params import Problems, TraceMethod, load_params, parse_params
from apr.core.seeds import derive_rng
from apr.language import build_language
from apr.language import events as ev
from apr.language.tokenizer import make_tokenizer
from apr.tasks.countdown import PROBLEM_SCHEMA, Problem, legal_operations, read_problems, verify
from apr.tasks.countdown.expand import HEURISTICS, expand, factor_distance
from apr.tasks.countdown.generate import generate_problems, make_problems
from apr.tasks.countdown.search import solve_trace
from apr.tasks.countdown.solvable import reachable
from apr.training.traces import TRACE_SCHEMA, draw_trace, encode_thread, make_traces

PARAMS = load_params("params.yaml")
LANGUAGE = build_language(PARAMS.grammar, PARAMS.problems)
METHODS = {
    "sos": TraceMethod(solver="sos", beam=(1, 5)),
    "sos_plus": TraceMethod(solver="sos_plus", beam=(1, 5), promising=0.6),
    "apr": TraceMethod(solver="apr", beam=(1, 10), promising=0.8),
    "apr_deep": TraceMethod(solver="apr", beam=(2, 6), promising=0.6, spawn_depth=1, child_promising=0.5),
}
SETTINGS = Problems(number_range=(1, 20), target_range=(10, 50), train=60, validation=1, test=1)
PROBLEMS = generate_problems(SETTINGS, 0)["train"]


MULTIPLY, RESULT = HEURISTICS["multiply"], HEURISTICS["result"]


def test_heuristics_by_hand():
    # factors >= 2 of 24: 2 3 4 6 8 12 24
    assert factor_distance(24, 24) == 0
    assert factor_distance(10, 24) == 2
    assert factor_distance(17, 24) == 5
    assert MULTIPLY((10, 17), 24) == 7
    assert RESULT((10, 17), 24) == 5


def test_expand_by_hand():
    # of 2 2 4: 2+2 and 2*2 leave {4,4}; 2-2 {4,0}; 2/2 {4,1}; 4+2 {2,6}; 4-2 and 4/2 {2,2}; 4*2 {2,8}
    successors = expand((2, 2, 4), 24, beam=15, max_value=None, heuristic=MULTIPLY)
    assert [state for _, state in successors] == [(4, 4), (4, 0), (4, 1), (2, 6), (2, 2), (2, 8)]
    best = expand((2, 2, 4), 24, beam=2, max_value=None, heuristic=MULTIPLY)
    assert [state for _, state in best] == [(4, 4), (2, 6)]  # distance 0; ties keep the order
    # of 1 17 3 for 24: 17 - 3 = 14 beside 1 is 2 + 1 from factors, 1 + 3 = 4 beside 17 is 0 + 5
    assert expand((1, 17, 3), 24, 1, None, MULTIPLY)[0][1] == (1, 14)
    assert expand((1, 17, 3), 24, 1, None, RESULT)[0][1] == (17, 4)


def test_a_serial_trace_by_hand():
    method = TraceMethod(solver="sos_plus", beam=(9, 9), promising=1.0)
    trace = solve_trace(Problem("p", (2, 2, 4), 6), method, None, derive_rng(0))
    ids, mask = encode_thread(LANGUAGE, trace.threads[0])
    assert LANGUAGE.vocabulary.decode(ids) == (
        "<root> 6 :0 2 2 4 go :1 2 + 2 = 4 4 + 8 > - 0 < * 16 > / 1 < :1 2 - 2 = 0 4 + 4 < - 4 < * 0 < "
        ":1 2 / 2 = 1 4 + 5 < - 3 < * 4 < / 4 < :1 4 + 2 = 6 2 + 8 > - 4 < * 12 > / 3 < "
        ":1 4 - 2 = 2 2 + 4 < - 0 < * 4 < / 1 < :1 4 * 2 = 8 2 + 10 > - 6 ! "
        "answer 4 * 2 = 8 , 8 - 2 = 6 end"
    )
    assert mask == [False] * 7 + [True] * (len(ids) - 7)


def test_a_parallel_trace_by_hand():
    method = TraceMethod(solver="apr", beam=(2, 2), promising=1.0)
    trace = solve_trace(Problem("p", (2, 2, 4), 16), method, None, derive_rng(0))
    texts = [LANGUAGE.vocabulary.decode(encode_thread(LANGUAGE, thread)[0]) for thread in trace.threads]
    assert texts == [
        "<root> 16 :0 2 2 4 go spawn #2 16 :1 2 + 2 = 4 4 #1 16 :1 4 - 2 = 2 2 run "
        "joined 2 + 2 = 4 , 4 * 4 = 16 joined none resume answer 2 + 2 = 4 , 4 * 4 = 16 end",
        "<child> 16 :1 2 + 2 = 4 4 go + 8 < - 0 < * 16 ! join 2 + 2 = 4 , 4 * 4 = 16 end",
        "<child> 16 :1 4 - 2 = 2 2 go + 4 < - 0 < * 4 < / 1 < join none end",
    ]
    _, mask = encode_thread(LANGUAGE, trace.threads[0])
    sampled = [word for word, kept in zip(texts[0].split(), mask, strict=True) if kept]
    assert sampled == texts[0].split()[7:27] + texts[0].split()[42:]


@pytest.mark.parametrize("name", METHODS)
def test_traces_parse_back_and_their_solutions_verify(name):
    solved = 0
    for problem in PROBLEMS:
        trace = solve_trace(problem, METHODS[name], 100, derive_rng(1, problem.id))
        for thread in trace.threads:
            ids, mask = encode_thread(LANGUAGE, thread)
            assert LANGUAGE.parse(ids) == thread.events
            assert len(mask) == len(ids)
            assert mask[-1]  # the stop token is the model's own
            _check_arithmetic(thread.events, problem.target)
        if trace.solved:
            solved += 1
            assert verify(problem, trace.threads[0].path).strict
    assert solved > len(PROBLEMS) * 0.25


def _check_arithmetic(events, target):
    """Every line and leaf follows from the state it stands under."""
    states = {}
    for event in events:
        lines = ()
        match event:
            case ev.RootPrompt(_, numbers, _):
                states[0] = numbers
            case ev.ChildPrompt(node):
                lines = node.lines
                states[node.lines[-1].depth] = node.lines[-1].state
                continue
            case ev.Goto(chain):
                lines = chain
            case ev.Line():
                lines = (event,)
            case ev.Leaf(op, result, comparison):
                deepest = states[max(states)]
                assert (op, result) in [(o.op, o.result) for o in legal_operations(*deepest, 100)]
                assert comparison == ("!" if result == target else "<" if result < target else ">")
        for line in lines:
            depth, operation, state = line.depth, line.operation, line.state
            assert operation in list(legal_operations(operation.left, operation.right, 100))
            if depth - 1 in states:  # a child does not know the states above its node
                parent = list(states[depth - 1])
                parent.remove(operation.left)
                parent.remove(operation.right)
                assert list(state) == [*parent, operation.result]
            states[depth] = state
            for deeper in [d for d in states if d > depth]:
                del states[deeper]


def test_a_full_beam_finds_every_solvable_problem():
    everything = TraceMethod(solver="sos_plus", beam=(99, 99), promising=1.0)
    queued = TraceMethod(solver="sos_plus", beam=(99, 99), promising=0.0)
    parallel = TraceMethod(solver="apr", beam=(99, 99), child_beam=99, promising=1.0)
    for problem in PROBLEMS[:12]:
        assert problem.target in reachable(problem.numbers, 100)
        for method in (everything, queued, parallel):
            assert solve_trace(problem, method, 100, derive_rng(0)).solved


def small_params(**traces):
    values = PARAMS.model_dump()
    values["problems"] |= {"train": 600, "validation": 1, "test": 1}
    values["eval"] |= {"problems": 1, "latency_problems": 1}
    values["traces"] |= {"problems": 600, **traces}
    return parse_params(values)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("language") / "tokenizer"
    make_tokenizer(small_params(), path)
    return path


def test_trace_files_have_the_same_bytes_for_any_number_of_workers(tokenizer, tmp_path):
    params = small_params()
    make_problems(params, tmp_path / "problems")
    digests = set()
    for workers in (1, 2, 4):
        out = tmp_path / f"apr-{workers}.parquet"
        make_traces(params, "apr", tmp_path / "problems" / "train.parquet", tokenizer, out, workers)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1
    table = pq.read_table(out)
    assert table.schema.equals(TRACE_SCHEMA)
    _check_rows(table.to_pylist(), params)
    loaded = load_dataset("parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[:] == table.to_pydict()


@pytest.mark.parametrize("workers", [1, 2])
def test_more_numbers_than_the_language_can_say_are_refused(tokenizer, tmp_path, workers):
    rows = [{"problem_id": f"p{i}", "numbers": [1, 2, 3, 4, i], "target": 10 + i} for i in range(1, 5)]
    write_rows(tmp_path / "problems.parquet", rows, PROBLEM_SCHEMA)
    with pytest.raises(DataError, match=r"5 numbers, \(1, 1, 2, 3, 4\), in a problem; allowed: at most"):
        make_traces(small_params(), "apr", tmp_path / "problems.parquet", tokenizer, tmp_path / "t", workers)
    assert not (tmp_path / "t").exists()


def _check_rows(rows, params):
    order = [(row["problem_id"], row["thread"]) for row in rows]
    assert order == sorted(order)
    assert len(set(order)) == len(order)
    conditioned = 0
    for row in rows:
        assert row["length"] == len(row["token_ids"]) == len(row["loss_mask"]) <= params.grammar.window
        assert (row["role"] == "root") == (row["thread"] == 0) == (row["parent"] == -1)
        if row["role"] == "root" and row["condition_kind"]:
            conditioned += 1
            assert row["condition_amount"] == row["children"]
    roots = sum(row["role"] == "root" for row in rows)
    assert 0.4 < conditioned / roots < 0.6


def test_token_budgets_cover_the_trace(tokenizer, tmp_path):
    params = small_params()
    make_problems(params, tmp_path / "problems")
    train = tmp_path / "problems" / "train.parquet"
    make_traces(params, "sos_plus", train, tokenizer, tmp_path / "t.parquet")
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    problems = {problem.id: problem for problem in read_problems(train)}
    assert len(rows) == len(problems)  # what is longer than the window is cut, not dropped
    cut = {True: 0, False: 0}
    for row in rows:
        asked = row["condition_amount"] or params.grammar.window
        assert row["condition_kind"] in (None, "tokens") and row["length"] <= asked <= params.grammar.window
        said = LANGUAGE.parse(row["token_ids"])[1:]
        trace = draw_trace(problems[row["problem_id"]], "sos_plus", params.traces.methods["sos_plus"], params)
        wanted = trace.threads[0].events[1:]
        if said == wanted:
            assert row["condition_kind"] is None or asked < row["length"] + params.grammar.token_step
            continue
        cut[row["condition_kind"] is None] += 1
        assert said[:-1] == wanted[: len(said) - 1] and said[-1] == ev.Answer(None) and not row["solved"]
        assert row["length"] + len(LANGUAGE.encode([wanted[len(said) - 1]])) > asked
    assert 0.1 < cut[True] / len(rows) < 0.2 and 0.15 < cut[False] / len(rows) < 0.35


def test_rejection_sampling_keeps_the_shortest_solution(tmp_path):
    params = small_params()
    method = params.traces.methods["sos_plus"]
    for problem in PROBLEMS[:20]:
        many = draw_trace(problem, "x", method.model_copy(update={"candidates": 6}), params)
        rng = derive_rng(params.seed, "trace", "x", problem.id)
        each = [solve_trace(problem, method, 100, rng) for _ in range(6)]
        lengths = [sum(len(t.events) for t in trace.threads) for trace in each if trace.solved]
        assert many.solved == bool(lengths)
        if lengths:
            assert sum(len(t.events) for t in many.threads) == min(lengths)


def test_a_window_that_keeps_nothing_is_an_error(tokenizer, tmp_path):
    params = small_params()
    params = params.model_copy(update={"grammar": params.grammar.model_copy(update={"window": 16})})
    make_problems(params, tmp_path / "problems")
    with pytest.raises(DataError, match="fits grammar.window = 16"):
        make_traces(params, "apr", tmp_path / "problems" / "train.parquet", tokenizer, tmp_path / "t.parquet")
