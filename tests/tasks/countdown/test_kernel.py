"""`search.c` makes what the solvers in Python make, to the byte."""

import itertools
import shutil
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.core.params import Params, TraceMethod
from apr.language import Language, Vocabulary
from apr.language.tokenizer import make_tokenizer
from apr.pipeline.plan import load_scale
from apr.tasks.countdown import Problem, kernel
from apr.tasks.countdown.generate import make_problems
from apr.training import traces
from apr.training.traces import TRACE_SCHEMA, chunk_table, make_traces, trace_rows

PARAMS = load_scale("default")
SHARES = st.sampled_from([0.0, 0.3, 0.9, 1.0])


@st.composite
def settings_of_a_method(draw: st.DrawFn) -> Params:
    beam = sorted(draw(st.tuples(st.integers(1, 12), st.integers(1, 12))))
    values = {
        "solver": draw(st.sampled_from(["sos", "sos_plus", "apr"])), "beam": beam,
        "heuristic": draw(st.sampled_from(["multiply", "result"])), "child_beam": draw(st.integers(1, 15)),
        "spawn_depth": draw(st.integers(0, 2)), "candidates": draw(st.integers(1, 3)),
        "only_solved": draw(st.booleans()),
        **{name: draw(SHARES) for name in ("promising", "child_promising", "condition_share", "cut_share")},
    }  # fmt: skip
    grammar = {
        "window": draw(st.sampled_from([48, 256, 4096])), "token_step": draw(st.integers(1, 300)),
        "number_tokens": draw(st.sampled_from([5, 100, 12000])), "max_children": 12,
    }  # fmt: skip
    return PARAMS.model_copy(update={
        "problems": PARAMS.problems.model_copy(update={
            "numbers": 6, "max_value": draw(st.sampled_from([None, 30, 5000])),
        }),
        "grammar": PARAMS.grammar.model_copy(update=grammar),
        "traces": PARAMS.traces.model_copy(update={"methods": {"x": TraceMethod(**values)}}),
    })  # fmt: skip


def some_problems(seed: int, count: int) -> list[Problem]:
    rng = np.random.default_rng(seed)
    return [
        Problem(f"{seed}-{index}", tuple(rng.integers(0, 100, rng.choice([2, 3, 4, 4, 4])).tolist()),
                int(rng.integers(0, 101)))
        for index in range(count)
    ]  # fmt: skip


@cache
def language_of(number_tokens: int, numbers: int, messages: int) -> Language:
    return Language(Vocabulary(number_tokens, numbers, messages))


def language_for(params: Params) -> Language:
    return language_of(params.grammar.number_tokens, params.problems.numbers, params.grammar.max_children)


def in_c(problems: list[Problem], name: str, params: Params) -> pa.Table:
    return chunk_table(problems, name, params, language_for(params))


def in_python(problems: list[Problem], name: str, params: Params) -> pa.Table:
    rows = [row for problem in problems for row in trace_rows(problem, name, params, language_for(params))]
    return pa.Table.from_pylist(rows, schema=TRACE_SCHEMA)


def left_to_python(problems: list[Problem], name: str, params: Params) -> list[int]:
    return kernel.search(problems, name, params, traces._tables(language_for(params)))[-1]


@given(settings_of_a_method(), st.integers(0, 10**9))
@settings(max_examples=100, deadline=None)
def test_the_kernel_makes_what_the_solvers_make(params, seed):
    problems = some_problems(seed, 8)
    assert left_to_python(problems, "x", params) == []
    assert in_c(problems, "x", params).equals(in_python(problems, "x", params))


@given(settings_of_a_method(), st.integers(0, 10**9))
@settings(max_examples=20, deadline=None)
def test_what_the_kernel_leaves_is_made_in_its_place(params, seed):
    problems = some_problems(seed, 5)
    problems[1] = Problem("large", (10**5, 10**5, 10**5, 10**5), 7)  # products beyond 2^63
    problems[3] = Problem("many", (0, 0, 0, 0, 0, 0, 0, 0, 1), 1)
    params = params.model_copy(update={"problems": params.problems.model_copy(update={"numbers": 9})})
    assert left_to_python(problems, "x", params) == [1, 3]
    assert in_c(problems, "x", params).equals(in_python(problems, "x", params))


def test_a_vocabulary_without_digits_is_left_the_numbers_beyond_the_table(monkeypatch):
    params = PARAMS.model_copy(update={
        "problems": PARAMS.problems.model_copy(update={"max_value": None}),
        "grammar": PARAMS.grammar.model_copy(update={"window": 10_000}),
    })  # fmt: skip
    problems = some_problems(0, 60)
    expected = in_python(problems, "apr", params)
    tables = kernel.Tables(language_for(params))
    tables.arrays["words"][-10:] = -1
    monkeypatch.setattr(traces, "_tables", lambda language: tables)
    left = left_to_python(problems, "apr", params)
    text = language_for(params).vocabulary.decode
    large = {row["problem_id"] for row in expected.to_pylist()
             if any(word.isdigit() and int(word) >= kernel.TABLED for word in text(row["token_ids"]).split())}
    assert 0 < len(left) < len(problems) and {problems[index].id for index in left} == large
    assert in_c(problems, "apr", params).equals(expected)


@pytest.mark.parametrize("scale, count", [("smoke", 300), ("default", 2000)])
def test_files_have_the_same_bytes_without_a_compiler(monkeypatch, tmp_path, scale, count):
    params = load_scale(scale)
    values = {"problems": params.problems.model_copy(update={"train": count, "validation": 1, "test": 1}),
              "traces": params.traces.model_copy(update={"problems": count})}  # fmt: skip
    params = params.model_copy(update=values)
    make_problems(params, tmp_path / "problems")
    make_tokenizer(params, tokenizer := tmp_path / "tokenizer")
    methods = {"sos", "sos_plus", "sos_plus_selected", "apr"} & set(params.traces.methods)
    for method in methods:
        make_traces(params, method, tmp_path / "problems/train.parquet", tokenizer, tmp_path / method)
    monkeypatch.setattr(shutil, "which", lambda command: None)
    with pytest.warns(UserWarning, match="no C compiler .*: making traces will be slow"):
        assert kernel.load_search.__wrapped__() is None
    monkeypatch.setattr(kernel, "load_search", lambda: None)
    for method in methods:
        make_traces(params, method, tmp_path / "problems/train.parquet", tokenizer, tmp_path / "python")
        assert (tmp_path / "python").read_bytes() == (tmp_path / method).read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_problems_are_taken_than_are_worked_on(tmp_path, workers):
    make_tokenizer(PARAMS, tokenizer := tmp_path / "tokenizer")
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
