"""Problems one after another: the same as all at once, the same faults, and no more memory for more."""

import tracemalloc

import pytest

from apr.core.errors import DataError
from apr.core.files import count_rows, write_rows
from apr.core.params import load_params
from apr.tasks import open_task, problems
from apr.tasks.countdown.problem import PROBLEM_SCHEMA, Problem
from apr.tasks.problems import make_problems, read_problems, stream_problems

TASK = open_task(load_params("params.yaml"))


def write(path, *rows):
    write_rows(path, [dict(zip(PROBLEM_SCHEMA.names, row, strict=True)) for row in rows], PROBLEM_SCHEMA)
    return path


def test_a_stream_holds_what_the_file_holds(tmp_path):
    params = load_params("params.yaml")
    few = params.problems.model_copy(update={"train": 2500, "validation": 1, "test": 1})
    make_problems(params.model_copy(update={"problems": few}), tmp_path)
    path = tmp_path / "train.parquet"
    assert list(stream_problems(TASK, path)) == read_problems(TASK, path)
    assert count_rows(path) == 2500


def test_faults_are_found_where_they_are(tmp_path):
    path = tmp_path / "problems.parquet"
    for read in (count_rows, lambda path: next(stream_problems(TASK, path))):
        with pytest.raises(DataError, match="no such file"):
            read(path)
    found = stream_problems(TASK, write(path, ("a", [1, 2], 3), ("b", [1, 2], 50)))
    assert next(found) == Problem("a", (1, 2), 3)
    with pytest.raises(DataError, match="'b' has no solution"):
        next(found)
    for second in ("b", "a"):
        with pytest.raises(DataError, match=f"'{second}' after 'b'; allowed: ascending ids"):
            list(stream_problems(TASK, write(path, ("b", [1, 2], 3), (second, [1, 3], 4))))
    grown = write(path, ("p-9", [1, 2], 3), ("p-10", [1, 3], 4))
    assert [problem.id for problem in stream_problems(TASK, grown)] == ["p-9", "p-10"]
    with pytest.raises(DataError, match="not a Countdown problem"):
        list(stream_problems(TASK, write(path, ("a", [3], 3))))
    with pytest.raises(DataError, match="holds no problems"):
        list(stream_problems(TASK, write(path)))
    write(path, ("a", [1, 2], 3))
    path.write_bytes(path.read_bytes()[:-20])
    for read in (count_rows, lambda path: next(stream_problems(TASK, path))):
        with pytest.raises(DataError, match="not a readable Parquet file"):
            read(path)


@pytest.fixture
def traced():
    tracemalloc.start()
    yield tracemalloc
    tracemalloc.stop()


def test_what_is_written_is_not_kept(tmp_path, monkeypatch, traced):
    """As Python objects, which are most of it; 10^4 to 10^6 problems: `benchmarks/traces.py`."""
    peaks = []
    for count in (2000, 2000, 20_000):  # at first it also imports
        drawn = (("train", Problem(f"train-{index:07d}", (1, 2, 3, 4), index % 90)) for index in range(count))
        monkeypatch.setattr(problems, "draw_problems", lambda _, drawn=drawn: drawn)
        traced.reset_peak()
        make_problems(load_params("params.yaml"), tmp_path)
        peaks.append(traced.get_traced_memory()[1])
    assert count_rows(tmp_path / "train.parquet") == 20_000
    assert peaks[2] < 1.2 * peaks[1]
