"""Evaluation of a real (untrained) checkpoint, and the verdicts on rollouts written by hand."""

import shutil

import pyarrow.parquet as pq
import pytest

from apr.core.errors import CheckpointError, DataError, ParamsError
from apr.core.files import read_json, read_rows, write_rows
from apr.engine.checkpoint import load_model
from apr.engine.servers.serve import EngineServer
from apr.engine.slots import SlotEngine
from apr.evaluation import sweep
from apr.evaluation.latency import Stopwatch, measure_latency
from apr.evaluation.points import ModelId, Point, evaluated, points
from apr.evaluation.results import EVAL_SCHEMA, TIMED, Key, ledger, percentiles, read_cells, schema_of
from apr.evaluation.sweep import evaluate
from apr.language.tokenizer import load_language
from apr.rollouts.rollout import Rollout, Spawn, Status, Thread
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.countdown.operation import Operation
from apr.tasks.countdown.problem import PROBLEM_SCHEMA, Problem
from apr.tasks.countdown.verify import expression
from apr.tasks.problems import read_problems


def test_points_are_the_union_of_the_sweeps_and_greedy_decoding_has_one_sample(params):
    assert points(params, ModelId("sft", "apr")) == [
        Point(None, 0.0, 0), Point(None, 1.0, 0), Point(None, 1.0, 1), Point(None, 1.0, 2),
        Point(2, 0.0, 0), Point(2, 1.0, 0),
    ]  # fmt: skip
    assert points(params, ModelId("rl", "apr_max")) == [Point(3, 0.0, 0)]
    assert evaluated(params) == [("rl", "apr_max"), ("sft", "apr"), ("sft", "sos_plus")]
    kinds = [model.condition_kind(params, 3) for model in evaluated(params)]
    assert kinds == ["children", "children", "tokens"]
    with pytest.raises(ParamsError, match=r"eval.sweeps: rl/apr is not allowed; allowed: rl/apr_max, sft/ap"):
        points(params, ModelId("rl", "apr"))


def test_expressions_agree_where_the_answers_do():
    first = [Operation(12, "+", 9, 21), Operation(5, "-", 3, 2), Operation(21, "*", 2, 42)]
    other = [Operation(5, "-", 3, 2), Operation(9, "+", 12, 21), Operation(2, "*", 21, 42)]
    assert expression(first) == expression(other) == "((12 + 9) * (5 - 3))"
    assert expression([Operation(3, "-", 1, 2), Operation(2, "-", 2, 0)]) == "((3 - 1) - 2)"


def make_rollout(language, *texts, statuses=None):
    """A root and its children, spawned at once after the root's prompt; every other token is sampled."""
    threads = []
    for index, (prompt, text) in enumerate(texts):
        ids = language.vocabulary.encode(f"{prompt} {text}".strip())
        start = len(language.vocabulary.encode(prompt))
        threads.append(Thread(index, -1 if index == 0 else 0, int(index > 0), start, ids,
                              [place >= start for place in range(len(ids))], [0.0] * len(ids), Status.DONE))
    for thread, (status, reason) in zip(threads, statuses or [], strict=False):
        thread.status, thread.reason = status, reason
    if len(threads) > 1:
        threads[0].spawns.append(Spawn(threads[0].prompt_length + 4, list(range(1, len(threads)))))
    return Rollout("x", threads)


PROMPT = "<root> 17 :0 2 3 4 5 go"


@pytest.mark.parametrize(
    ("text", "answer", "strict", "lenient", "reason"),
    [
        ("answer 4 * 3 = 12 , 12 + 5 = 17 end", "4 * 3 = 12, 12 + 5 = 17", False, True, "numbers left over"),
        ("answer 5 - 2 = 3 , 4 * 3 = 12 , 12 + 3 = 15 end", "5 - 2 = 3, 4 * 3 = 12, 12 + 3 = 15", False,
         False, "last result is 15, not 17"),
        ("answer 5 - 2 = 3 , 4 * 3 = 12 , 12 + 5 = 17 end", "5 - 2 = 3, 4 * 3 = 12, 12 + 5 = 17", False, True,
         "operation 3: operand already used"),
        ("answer 5 * 4 = 20 , 20 - 3 = 17 , 17 - 2 = 15 end", "5 * 4 = 20, 20 - 3 = 17, 17 - 2 = 15", False,
         False, "last result is 15, not 17"),
        ("answer 3 + 2 = 5 , 5 * 4 = 20 , 20 - 3 = 17 end", "3 + 2 = 5, 5 * 4 = 20, 20 - 3 = 17", False, True,
         "operation 3: operand already used"),
        ("answer none end", "none", False, False, "declares no solution"),
    ],
)  # fmt: skip
def test_verdicts_on_answers(params, text, answer, strict, lenient, reason):
    task = open_task(params)
    problem = Problem("p", (2, 3, 4, 5), 17)
    row = judge(task, problem, make_rollout(task.language, (PROMPT, text)))
    assert row.status == "done"
    assert (row.answer, row.strict, row.lenient, row.reason) == (answer, strict, lenient, reason)


def test_a_right_answer_is_right(params):
    task = open_task(params)
    text = "answer 5 - 2 = 3 , 4 * 3 = 12 , 12 + 3 = 15 end"
    row = judge(task, Problem("p", (2, 3, 4, 5), 15), make_rollout(task.language, (PROMPT, text)))
    assert row._asdict() == {"status": "done", "answer": "5 - 2 = 3, 4 * 3 = 12, 12 + 3 = 15", "strict": True,
                   "lenient": True, "reason": "solved", "expression": "(((5 - 2) * 4) + 3)"}  # fmt: skip


def test_failures_of_the_model_are_rows(params):
    task = open_task(params)
    problem = Problem("p", (2, 3, 4, 5), 17)
    malformed = judge(task, problem, make_rollout(task.language, (PROMPT, "answer 2 + + end")))
    assert (malformed.status, malformed.answer, malformed.strict) == ("malformed", None, False)
    cut = make_rollout(task.language, (PROMPT, ":1 5 + 4"), statuses=[(Status.TRUNCATED, "window full")])
    assert judge(task, problem, cut)._asdict() == {
        "status": "truncated", "answer": None, "expression": None, "strict": False, "lenient": False,
        "reason": "window full",
    }  # fmt: skip


def test_ledger(params):
    language = open_task(params).language
    rollout = make_rollout(
        language, (PROMPT, "answer none end"), ("<child> 17 go", ":1 5 + 4"),
        ("<child> 17 go", "join none end"), ("<child> 17 go", ""),
        statuses=[(Status.DONE, ""), (Status.TRUNCATED, ""), (Status.MALFORMED, ""), (Status.CANCELLED, "")],
    )  # fmt: skip
    assert ledger(rollout) == {
        "prompt": 8 + 3 * 3, "sampled": 3 + 4 + 3, "injected": 0, "total": 10, "sequential": 3 + 4,
        "longest": 11, "children": 3, "depth": 1, "malformed_threads": 1, "truncated_threads": 2,
        "threads": 4,
    }  # fmt: skip


def test_evaluate_writes_a_row_per_problem_and_point_in_order(params, tiny_params, world, tmp_path):
    evaluate(params, "apr", "sft", *world, tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet", EVAL_SCHEMA)
    problems, at = read_problems(open_task(params), world[0])[:4], points(params, ModelId("sft", "apr"))
    columns = ("problem_id", "condition_amount", "temperature", "sample", "join")
    ids = [tuple(row[name] for name in columns) for row in rows]
    assert ids == [(problem.id, *point) for problem in problems for point in at]
    kinds = {(row["condition_kind"], row["condition_amount"]) for row in rows}
    assert kinds == {(None, None), ("children", 2)}
    assert all(row["sampled"] == row["total"] >= row["sequential"] > 0 for row in rows)
    assert all(row["longest"] <= 64 and row["threads"] == row["children"] + 1 for row in rows)

    evaluate(tiny_params(engine={"slots": 3, "max_tokens": 80, "device": "cpu"}), "apr", "sft", *world,
             tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    cells = read_cells([tmp_path / "a.parquet"])
    assert {key: cell.samples for key, cell in cells.items()} == {
        Key("apr", "sft", 0.0): 1, Key("apr", "sft", 1.0): 3, Key("apr", "sft", 0.0, 2): 1,
        Key("apr", "sft", 1.0, 2): 1,
    }  # fmt: skip


def test_where_prompts_ask_for_devices_rollouts_are_replayed(params, tiny_params, world, tmp_path):
    grammar = {"number_tokens": 20, "window": 64, "max_children": 3}
    asking = tiny_params(grammar=grammar | {"devices": True})
    for name, its in (("plain", params), ("asking", asking)):
        evaluate(its, "apr", "sft", *world, tmp_path / f"{name}.parquet")
    assert pq.read_schema(tmp_path / "plain.parquet").names == EVAL_SCHEMA.names
    rows = read_rows(tmp_path / "asking.parquet", schema_of(asking))
    assert [{name: row[name] for name in EVAL_SCHEMA.names} for row in rows] == read_rows(
        tmp_path / "plain.parquet", EVAL_SCHEMA)  # fmt: skip
    for row in rows:
        times = [row[f"steps_{devices}"] for devices in (1, 2, 4, 8, 16)]
        assert times == sorted(times, reverse=True) and times[-1] >= row["sequential"]
        assert row["children"] or times == [row["sampled"] + 0.5 * (row["prompt"] - 1)] * 5
    cells = read_cells([tmp_path / "asking.parquet"], schema_of(asking))
    assert cells[Key("apr", "sft", 1.0)].columns["steps_4"].shape == (4, 3)


def test_a_greedy_thread_of_several_points_is_decoded_once(tiny_params, world, tmp_path, monkeypatch):
    sweeps = {join: {"models": ["apr"], "conditions": [2, 3], "temperatures": [0.0, 1.0], "join": join}
              for join in ("all", "any")}  # fmt: skip
    params = tiny_params(eval={"problems": 4, "latency_problems": 2, "sweeps": sweeps})
    opened, open_thread = [], SlotEngine.open

    def counted(engine, key, prompt, *settings):
        opened.append(tuple(prompt))
        open_thread(engine, key, prompt, *settings)

    monkeypatch.setattr(SlotEngine, "open", counted)
    evaluate(params, "apr", "sft", *world, tmp_path / "a.parquet")
    shared, opened[:] = list(opened), []
    monkeypatch.setattr(sweep, "SharedDecoder", lambda decoder: decoder)
    evaluate(params, "apr", "sft", *world, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    threads = sum(row["threads"] for row in read_rows(tmp_path / "b.parquet", EVAL_SCHEMA))
    assert len(opened) == threads == 32, "of a model that never spawns"
    assert len(shared) == 16 and set(shared) == set(opened)


@pytest.mark.parametrize("backend", ["vllm", "sglang"])
def test_a_server_gives_the_same_greedy_rows(params, tiny_params, world, every, tmp_path, backend):
    evaluate(params, "apr", "sft", *world, tmp_path / "a.parquet")
    language = load_language(world[1])
    stop_ids = language.syntax.stop_ids
    engine = SlotEngine(load_model(world[1], "cpu"), stop_ids, 4, params.grammar.window)
    with EngineServer(engine, "apr") as server:
        settings = params.engine.model_dump() | {"backend": backend, "endpoints": [server.url]}
        served = tiny_params(engine=settings)
        evaluate(served, "apr", "sft", *world, tmp_path / "b.parquet")
        with pytest.raises(ParamsError, match="engine.backend: .* allowed: slots, as servers have one model"):
            measure_latency(served, world[0], every, tmp_path / "c.json")
        sweeps = {"one": {"models": ["apr"], "temperatures": [0.0]}}
        alone = tiny_params(engine=settings, eval={"problems": 4, "latency_problems": 2, "sweeps": sweeps})
        measure_latency(alone, world[0], every, tmp_path / "c.json")
    greedy = [[row for row in read_rows(tmp_path / name, EVAL_SCHEMA) if row["temperature"] == 0]
              for name in ("a.parquet", "b.parquet")]  # fmt: skip
    assert greedy[0] == greedy[1]
    (served_model,) = read_json(tmp_path / "c.json")["models"].values()
    first = served_model["conditions"][0]["problems"][0]
    assert served_model["costs"] is None and served_model["conditions"][0]["modelled"] == {}
    assert first["seconds"] > first["decode_seconds"] > 0 == first["prefill_seconds"]


def test_a_gap_in_an_evaluation_is_an_error(params, world, tmp_path):
    evaluate(params, "apr", "sft", *world, tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet", EVAL_SCHEMA)
    write_rows(tmp_path / "b.parquet", rows[:2] + rows[3:], EVAL_SCHEMA)
    with pytest.raises(DataError, match=r"b.parquet: sft/apr T=1: rows are missing or double \(11 rows"):
        read_cells([tmp_path / "b.parquet"])


def test_bad_input(params, tiny_params, world, tmp_path):
    problems, checkpoint = world
    with pytest.raises(CheckpointError):
        evaluate(params, "apr", "sft", problems, tmp_path, tmp_path / "a.parquet")
    few = tmp_path / "few.parquet"
    write_rows(few, read_rows(problems, PROBLEM_SCHEMA)[:3], PROBLEM_SCHEMA)
    with pytest.raises(DataError, match=r"few.parquet: holds 3 problems, eval asks for 4"):
        evaluate(params, "apr", "sft", few, checkpoint, tmp_path / "a.parquet")
    narrow = tiny_params(grammar={"number_tokens": 20, "window": 16})
    wide = read_rows(problems, PROBLEM_SCHEMA)
    wide[0] |= {"numbers": [1, 1, 99999, 99999], "target": 199998}  # by digits
    write_rows(few, wide, PROBLEM_SCHEMA)
    with pytest.raises(ParamsError, match=r"grammar.window: 16 is not allowed; allowed: more than the 20 to"):
        evaluate(narrow, "apr", "sft", few, checkpoint, tmp_path / "a.parquet")
    assert not (tmp_path / "a.parquet").exists()


@pytest.fixture
def every(world, tmp_path):
    """A folder of models, all of them the same."""
    for model in ("sft/apr", "rl/apr_max"):
        shutil.copytree(world[1], tmp_path / "models" / model)
    return tmp_path / "models"


def test_latency_of_each_greedy_condition_of_policies_and_what_they_start_from(
    params, world, every, tmp_path
):
    measure_latency(params, world[0], every, tmp_path / "l.json")
    timed = read_json(tmp_path / "l.json")
    assert [timed[name] for name in ("device", "torch_threads", "workers")] == ["cpu", 1, 1]
    conditions = {name: [entry["condition"] for entry in its["conditions"]]
                  for name, its in timed["models"].items()}  # fmt: skip
    assert conditions == {"rl/apr_max": [3], "sft/apr": [None, 2]}
    for its in timed["models"].values():
        assert set(its["costs"]) == {"decode", "context", "prefill"}
        assert list(its["costs"]["decode"]) == ["1", "2", "4"], "of 8 slots, as many as a problem has threads"
        for entry in its["conditions"]:
            assert [row["problem_id"] for row in entry["problems"]] == ["test-0000000", "test-0000001"]
            for row in entry["problems"]:
                assert 0 < row["prefill_seconds"] + row["decode_seconds"] <= row["seconds"]
                assert row["cpu_seconds"] > 0 and row["total"] >= row["sequential"] > 0
            assert list(entry["modelled"]) == ["1", "2", "4", "8", "16"]
            assert entry["modelled"]["1"] >= entry["modelled"]["16"] > 0


def test_all_models_are_timed_problem_by_problem(params, world, every, tmp_path, monkeypatch):
    asked, decode = [], Stopwatch.decode

    def record(watch, point, problem):
        asked.append((problem.id[-1], watch.model.name, point.condition))
        return decode(watch, point, problem)

    monkeypatch.setattr(Stopwatch, "decode", record)
    measure_latency(params, world[0], every, tmp_path / "l.json")
    each = [("apr_max", 3), ("apr", None), ("apr", 2)]
    assert asked[:2] == [("0", "apr_max", 3), ("0", "apr", None)], "loads what is loaded lazily"
    assert asked[2:] == [(problem, *one) for problem in "01" for one in each]


def test_percentiles_interpolate():
    rows = [dict(zip(TIMED, (0.0, 2.0 * i, float(i), 1.0), strict=True)) for i in range(1, 5)]
    found = percentiles(rows)
    assert found["p50"] == dict(zip(TIMED, (0.0, 5.0, 2.5, 1.0), strict=True))
    assert found["p95"] == pytest.approx(dict(zip(TIMED, (0.0, 7.7, 3.85, 1.0), strict=True)))
