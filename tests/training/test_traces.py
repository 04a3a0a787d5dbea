"""Files of traces: rows, budgets and conditions, whatever the workers; what a window does not keep."""

import hashlib
import itertools
from random import Random
from statistics import fmean

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from apr.core.errors import DataError
from apr.core.files import write_rows
from apr.core.params import load_params, parse_params
from apr.core.seeds import derive_rng
from apr.tasks import make_tokenizer, open_task
from apr.tasks.countdown.problem import PROBLEM_SCHEMA, Problem
from apr.tasks.problems import generate_problems, make_problems, read_problems
from apr.training import traces
from apr.training.traces import TRACE_SCHEMA, draw_condition, draw_trace, make_traces

PARAMS = load_params("params.yaml")
TASK = open_task(PARAMS)
LANGUAGE = TASK.language


def small_params(max_depth=1, **traces):
    values = PARAMS.model_dump()
    values["engine"]["max_depth"] = max_depth
    values["problems"] |= {"train": 600, "validation": 1, "test": 1}
    values["eval"] |= {"problems": 1, "latency_problems": 1}
    values["traces"] |= {"problems": 600, **traces}
    return parse_params(values)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("language") / "tokenizer"
    make_tokenizer(small_params(), path)
    return path


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems")
    make_problems(small_params(), path)
    return path / "train.parquet"


def test_trace_files_have_the_same_bytes_for_any_number_of_workers(tokenizer, train, tmp_path):
    params = small_params()
    digests = set()
    for workers in (1, 2, 4):
        out = tmp_path / f"apr-{workers}.parquet"
        make_traces(params, "apr", train, tokenizer, out, workers)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1
    table = pq.read_table(out)
    assert table.schema.equals(TRACE_SCHEMA)
    _check_rows(table.to_pylist(), params)
    loaded = load_dataset("parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[:] == table.to_pydict()


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
            asked = f" children {row['children']} go "
            assert asked in LANGUAGE.vocabulary.decode(row["token_ids"])
    roots = sum(row["role"] == "root" for row in rows)
    assert 0.4 < conditioned / roots < 0.6


def test_of_nested_traces_a_condition_counts_the_roots_children(tokenizer, train, tmp_path):
    nested = PARAMS.traces.methods["apr"].model_copy(update={"beam": (1, 4), "depth": 2, "promising": 0.8})
    methods = small_params().model_dump()["traces"]["methods"] | {"apr": nested.model_dump()}
    params = small_params(max_depth=2, methods=methods)
    make_traces(params, "apr", train, tokenizer, tmp_path / "t.parquet", 2)
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    _check_rows(rows, params)
    deep, syntax = 0, LANGUAGE.syntax
    for _, threads in itertools.groupby(rows, lambda row: row["problem_id"]):
        threads = list(threads)
        for row in threads:
            ids, below = row["token_ids"], [other for other in threads if other["parent"] == row["thread"]]
            spawned = [syntax.messages(ids[:at]) for at, token in enumerate(ids, 1) if token == syntax.run]
            prompts = [syntax.child_prompt(message) for messages in spawned for message in messages]
            for prompt, other in zip(prompts, below, strict=True):
                assert other["token_ids"][: len(prompt)] == prompt
            assert row["loss_mask"] == syntax.sampled(ids).tolist()
            deep += row["parent"] > 0
        assert threads[0]["children"] == sum(row["parent"] == 0 for row in threads)
    assert deep > 1000


def test_token_budgets_cover_the_trace(tokenizer, train, tmp_path):
    params = small_params()
    make_traces(params, "sos_plus", train, tokenizer, tmp_path / "t.parquet")
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    problems = {problem.id: problem for problem in read_problems(TASK, train)}
    assert len(rows) == len(problems)  # what is longer than the window is cut, not dropped
    cut = {True: 0, False: 0}
    end = LANGUAGE.vocabulary.encode("answer none end")
    for row in rows:
        asked = row["condition_amount"] or params.grammar.window
        assert row["condition_kind"] in (None, "tokens") and row["length"] <= asked <= params.grammar.window
        said = [token for token, sampled in zip(row["token_ids"], row["loss_mask"], strict=True) if sampled]
        trace = draw_trace(TASK, problems[row["problem_id"]], "sos_plus", params.traces.methods["sos_plus"])
        (root,) = trace
        wanted, ends = root.ids[root.ends[0] :], [place - root.ends[0] for place in root.ends]
        if said == wanted:
            assert row["condition_kind"] is None or asked < row["length"] + params.grammar.token_step
            continue
        cut[row["condition_kind"] is None] += 1
        kept = len(said) - len(end)
        assert said == wanted[:kept] + end and kept in ends and not row["solved"]
        assert row["length"] + ends[ends.index(kept) + 1] - kept > asked, "the next step has no room"
    assert 0.05 < cut[True] / len(rows) < 0.15 and 0.15 < cut[False] / len(rows) < 0.35


def test_a_mixture_has_of_each_problem_the_rows_of_one_method(tokenizer, train, tmp_path):
    values = small_params().model_dump()
    values["traces"]["methods"]["mixed"] = {"shares": {"sos_plus": 0.7, "apr": 0.3}}
    values["sft"]["tokens"]["mixed"] = 1
    params = parse_params(values)
    rows = {}
    for method in ("mixed", "sos_plus", "apr"):
        make_traces(params, method, train, tokenizer, tmp_path / f"{method}.parquet")
        rows[method] = pq.read_table(tmp_path / f"{method}.parquet").to_pylist()
    chosen = {row["problem_id"]: row["trace_id"].split("/")[0] for row in rows["mixed"]}
    parts = sorted(rows["sos_plus"] + rows["apr"], key=lambda row: (row["problem_id"], row["thread"]))
    left = {problem.id for problem in read_problems(TASK, train)} - chosen.keys()
    assert rows["mixed"] == [row for row in parts
                             if chosen.get(row["problem_id"]) == row["trace_id"].split("/")[0]]  # fmt: skip
    assert not left & {row["problem_id"] for row in rows["sos_plus"]} or len(left) < 20, "but what fits none"
    assert 0.62 < [*chosen.values()].count("sos_plus") / len(chosen) < 0.78
    kinds = {(row["condition_kind"], row["parent"] < 0 and row["children"] > 0) for row in rows["mixed"]}
    assert ("tokens", False) in kinds and ("children", True) in kinds and ("tokens", True) not in kinds


def test_a_share_of_the_prompts_asks_for_devices_whatever_the_trace(train, tmp_path):
    values = small_params().model_dump()
    values["grammar"]["devices"] = True
    values["traces"]["methods"]["told"] = values["traces"]["methods"]["apr"] | {"devices_share": 0.3}
    values["sft"]["tokens"]["told"] = 1
    params = parse_params(values)
    make_tokenizer(params, tmp_path / "tokenizer")
    make_traces(params, "told", train, tmp_path / "tokenizer", tmp_path / "t.parquet")
    rows = [row for row in pq.read_table(tmp_path / "t.parquet").to_pylist() if row["role"] == "root"]
    decode = open_task(params).language.vocabulary.decode
    shares = dict.fromkeys((None, "children", "devices"), 0.0)
    for row in rows:
        shares[row["condition_kind"]] += 1 / len(rows)
        said = decode(row["token_ids"]).split(" go")[0].split()[-2:]
        assert row["condition_kind"] is None or said == [row["condition_kind"], str(row["condition_amount"])]
    assert [*shares.values()] == pytest.approx([0.35, 0.35, 0.3], abs=0.06)
    asked = [(row["condition_amount"], row["children"]) for row in rows if row["condition_kind"] == "devices"]
    assert {amount for amount, _ in asked} == {1, 2, 4, 8, 16}
    assert 4 < fmean(children for amount, children in asked if amount == 1) < 7, "as of any trace"


def test_where_nothing_asks_for_devices_no_number_is_drawn_for_them():
    method = PARAMS.traces.methods["apr"].model_copy(update={"condition_share": 0.0})
    rng, drawn = Random(5), Random(5)
    assert draw_condition(TASK, [], method, rng) is None
    drawn.random()
    assert rng.getstate() == drawn.getstate() and "devices" not in LANGUAGE.vocabulary.ids


def test_rejection_sampling_keeps_the_shortest_solution():
    few = PARAMS.problems.model_copy(update={"train": 20, "validation": 1, "test": 1})
    problems = generate_problems(open_task(PARAMS.model_copy(update={"problems": few})))["train"]
    method = PARAMS.traces.methods["sos_plus"]
    for problem in problems:
        many = draw_trace(TASK, problem, "x", method.model_copy(update={"candidates": 6}))
        rng = derive_rng(PARAMS.seed, "trace", "x", problem.id)
        each = [TASK.demonstrate(problem, method, rng) for _ in range(6)]
        lengths = [sum(len(t.ends) for t in trace) for trace in each if trace[0].solved]
        assert many[0].solved == bool(lengths)
        if lengths:
            assert sum(len(t.ends) for t in many) == min(lengths)
        only_solved = method.model_copy(update={"candidates": 6, "only_solved": True})
        assert draw_trace(TASK, problem, "x", only_solved) == (many if lengths else None)


def test_a_window_that_keeps_nothing_is_an_error(tokenizer, train, tmp_path):
    params = small_params()
    params = params.model_copy(update={"grammar": params.grammar.model_copy(update={"window": 16})})
    with pytest.raises(DataError, match="fits grammar.window = 16"):
        make_traces(params, "apr", train, tokenizer, tmp_path / "t.parquet")


@pytest.mark.parametrize("workers", [1, 2])
def test_more_numbers_than_the_language_can_say_are_refused(tokenizer, tmp_path, workers):
    rows = [{"problem_id": f"p{i}", "numbers": [1, 2, 3, 4, i], "target": 10 + i} for i in range(1, 5)]
    write_rows(tmp_path / "problems.parquet", rows, PROBLEM_SCHEMA)
    with pytest.raises(DataError, match=r"5 numbers, \(1, 1, 2, 3, 4\), in a problem; allowed: at most"):
        make_traces(small_params(), "apr", tmp_path / "problems.parquet", tokenizer, tmp_path / "t", workers)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_problems_are_taken_than_are_worked_on(tokenizer, workers):
    taken = []

    def problems():
        for index in itertools.count():
            taken.append(index)
            yield Problem(f"p-{index}", (1, 2, 3), 6)

    tables = traces.trace_tables(problems(), "apr", PARAMS, tokenizer, workers)
    for chunk in range(3):
        assert next(tables)["problem_id"][0].as_py() == f"p-{chunk * traces.CHUNK}"
        assert len(taken) <= (chunk + 1 + 2 * workers) * traces.CHUNK
    tables.close()
