"""Problems: solvable, unique, disjoint, the same for the same seed; their files' errors."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.core.errors import DataError, ParamsError
from apr.core.files import read_rows, write_rows
from apr.core.params import load_params
from apr.tasks import open_task
from apr.tasks.countdown.operation import legal_operations
from apr.tasks.countdown.problem import PROBLEM_SCHEMA, Problem
from apr.tasks.countdown.settings import CountdownProblems
from apr.tasks.countdown.solvable import reachable, solvable
from apr.tasks.problems import generate_problems, read_problems, stream_problems

PARAMS = load_params("params.yaml")
SETTINGS = CountdownProblems(
    numbers=3, number_range=(1, 9), target_range=(5, 20), train=40, validation=10, test=10
)
TASK = open_task(PARAMS)


def generated(settings, seed):
    return generate_problems(open_task(PARAMS.model_copy(update={"problems": settings, "seed": seed})))


def brute_force(numbers, max_value):
    """All final values, by trying every sequence of operations."""
    if len(numbers) == 1:
        return {numbers[0]}
    values = set()
    for i, j in itertools.combinations(range(len(numbers)), 2):
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        for operation in legal_operations(numbers[i], numbers[j], max_value):
            values |= brute_force([*rest, operation.result], max_value)
    return values


@pytest.mark.parametrize("numbers", [(1, 2), (2, 2, 2), (3, 7, 8), (1, 5, 9, 12), (4, 4, 10, 20)])
@pytest.mark.parametrize("max_value", [None, 30])
def test_reachable_is_what_brute_force_finds(numbers, max_value):
    assert reachable(numbers, max_value) == brute_force(numbers, max_value)


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=4).map(lambda numbers: tuple(sorted(numbers))),
    st.sampled_from([None, 10, 30]),
)
def test_solvable_is_what_brute_force_finds(numbers, max_value):
    found = brute_force(numbers, max_value)
    assert {target for target in range(60) if solvable(numbers, target, max_value)} == {
        target for target in found if target < 60
    }


@given(st.lists(st.integers(1, 20), min_size=5, max_size=5), st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_five_numbers_are_solvable_where_the_target_is_reachable(numbers, target):
    numbers = tuple(sorted(numbers))
    assert solvable(numbers, target, 100) == (target in reachable(numbers, 100))


def test_splits_are_disjoint_solvable_and_within_their_ranges():
    splits = generated(SETTINGS, 0)
    assert {split: len(problems) for split, problems in splits.items()} == {
        "train": 40, "validation": 10, "test": 10,
    }  # fmt: skip
    everything = [problem for problems in splits.values() for problem in problems]
    assert len({(problem.numbers, problem.target) for problem in everything}) == 60
    for problem in everything:
        assert list(problem.numbers) == sorted(problem.numbers)
        assert all(1 <= number <= 9 for number in problem.numbers)
        assert 5 <= problem.target <= 20
        assert problem.target in brute_force(problem.numbers, 100)


def test_the_seed_and_nothing_else_decides():
    assert generated(SETTINGS, 1) == generated(SETTINGS, 1)
    assert generated(SETTINGS, 1) != generated(SETTINGS, 2)
    more = SETTINGS.model_copy(update={"train": 60})
    assert generated(more, 1)["test"] == generated(SETTINGS, 1)["test"]


def test_more_problems_than_there_are_is_an_error():
    few = SETTINGS.model_copy(update={"number_range": (1, 2), "train": 1000})
    with pytest.raises(ParamsError, match="wider number_range"):
        generated(few, 0)


def write(path, *rows):
    names = PROBLEM_SCHEMA.names
    write_rows(path, [dict(zip(names, row, strict=True)) for row in rows], PROBLEM_SCHEMA)
    return path


def test_problem_files_are_checked(tmp_path):
    path = tmp_path / "problems.parquet"
    with pytest.raises(DataError, match="no such file"):
        read_problems(TASK, path)
    with pytest.raises(DataError, match="'b' has no solution"):
        read_problems(TASK, write(path, ("a", [1, 2], 3), ("b", [1, 2], 50)))
    with pytest.raises(DataError, match="'a' occurs twice"):
        read_problems(TASK, write(path, ("a", [1, 2], 3), ("a", [1, 3], 4)))
    with pytest.raises(DataError, match="holds no problems"):
        read_problems(TASK, write(path))
    write(path, ("a", [1, 2], 3))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_problems(TASK, path)
    write(path, ("a", [1, 2], 3))
    pq.write_table(pq.read_table(path).drop_columns(["target"]), path)
    with pytest.raises(DataError, match="column 'target' is missing"):
        read_rows(path, PROBLEM_SCHEMA)


@pytest.mark.parametrize("numbers", itertools.permutations((3, 5, 9, 12)))
def test_the_order_of_the_numbers_changes_nothing(tmp_path, numbers):
    path = write(tmp_path / "problems.parquet", ("p", list(numbers), 27))
    made = Problem("p", numbers, 27)
    assert made == Problem("p", (3, 5, 9, 12), 27) and made.numbers == (3, 5, 9, 12)
    assert [made] == read_problems(TASK, path) == list(stream_problems(TASK, path))
    assert TASK.prompt(made) == TASK.prompt(Problem("q", (3, 5, 9, 12), 27))


@pytest.mark.parametrize(
    "row, said",
    [
        ((None, [1, 2], 3), "id None is not allowed"),
        (("", [1, 2], 3), "id '' is not allowed"),
        (("p", None, 3), "not a Countdown problem: None -> 3"),
        (("p", [], 3), "not a Countdown problem"),
        (("p", [3], 3), "not a Countdown problem"),
        (("p", [1, None], 3), "not a Countdown problem"),
        (("p", [1, 2], None), "not a Countdown problem: [1, 2] -> None"),
        (("p", [-1, 2], 1), "not a Countdown problem"),
        (("p", [1, 2], -1), "not a Countdown problem"),
        (("p", [1] * 7, 7), "allowed: 2 to 6 numbers"),
        (("p", [10**8, 10**8, 10**8], 7), "allowed: a product of at most 2^58"),
        (("p\n", [1, 2], 50), "'p\\n' has no solution"),
    ],
)
def test_rows_that_are_no_problems_are_refused_in_one_line(tmp_path, row, said):
    path = write(tmp_path / "problems.parquet", row)
    for read in (read_problems, lambda task, path: list(stream_problems(task, path))):
        with pytest.raises(DataError) as error:
            read(TASK, path)
        assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "column, values",
    [
        ("target", pa.array([2**31], pa.int64())),
        ("target", pa.array([3.0])),
        ("target", pa.array([True])),
        ("numbers", pa.array([[1.0, 2.0]])),
        ("numbers", pa.array(["1 2"])),
        ("problem_id", pa.array([7])),
        ("problem_id", pa.array([b"\xff"]).view(pa.string())),
    ],
)
def test_columns_of_another_type_are_refused(tmp_path, column, values):
    path = write(tmp_path / "problems.parquet", ("a", [1, 2], 3))
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, values), path)
    for read in (read_problems, lambda task, path: list(stream_problems(task, path))):
        with pytest.raises(DataError, match="problems.parquet: (column|not a readable Parquet file)"):
            read(TASK, path)
