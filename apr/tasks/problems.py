"""A task's problems, drawn for three splits that share none, and files of them."""

from collections.abc import Hashable, Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from apr.core.errors import DataError
from apr.core.files import atomic_path, stream_rows
from apr.core.params import Params
from apr.core.progress import track
from apr.core.seeds import derive_rng
from apr.tasks import open_task
from apr.tasks.task import Problem, Task

SPLITS = ("test", "validation", "train")
"""In the order of generation: a larger training set changes neither test nor validation."""

ROWS, BATCH = 100_000, 1000
"""Problems per row group, which is in memory as Arrow columns, and of those as Python objects."""


def draw_problems(task: Task) -> Iterator[tuple[str, Problem]]:
    """Yields split and problem, one after another. Raises `ParamsError` if there are too few."""
    taken: set[Hashable] = set()
    for split in SPLITS:
        for index in range(getattr(task.params.problems, split)):
            name = f"{split}-{index:07d}"
            yield split, task.draw(name, derive_rng(task.params.seed, name), taken)


def make_problems(params: Params, out: Path) -> None:
    """Writes ``{train,validation,test}.parquet`` into the directory `out`, all or nothing."""
    task = open_task(params)
    total = sum(getattr(params.problems, split) for split in SPLITS)
    drawn = track(draw_problems(task), "problems", total, "problem")
    with atomic_path(out) as partial:
        partial.mkdir()
        for split, problems in groupby(drawn, itemgetter(0)):
            tables = _tables(task, (problem for _, problem in problems))
            with pq.ParquetWriter(partial / f"{split}.parquet", task.schema, compression="zstd") as writer:
                while group := list(islice(tables, ROWS // BATCH)):
                    writer.write_table(pa.concat_tables(group).combine_chunks())


def _tables(task: Task, problems: Iterable[Problem]) -> Iterator[pa.Table]:
    """Of `BATCH` problems each."""
    rows = map(task.row, problems)
    while batch := list(islice(rows, BATCH)):
        yield pa.table(list(zip(*batch, strict=True)), schema=task.schema)


def generate_problems(task: Task) -> dict[str, list[Problem]]:
    """Returns the problems of each split, by name."""
    drawn = groupby(draw_problems(task), itemgetter(0))
    return {split: [problem for _, problem in problems] for split, problems in drawn}


def stream_problems(task: Task, path: str | Path) -> Iterator[Problem]:
    """Yields the problems of a Parquet file in its order, which is that of their ids, shorter ones first.

    Raises `DataError` for what `read_problems` does, when it comes there, and for an id out of order: so none
    occurs twice, and none need be kept to know it.
    """
    before = (0, "")
    for problem in _problems(task, path):
        place = (len(problem.id), problem.id)
        if place <= before:
            raise DataError(f"{path}: problem id {problem.id!r} after {before[1]!r}; allowed: ascending ids")
        before = place
        yield problem


def read_problems(task: Task, path: str | Path) -> list[Problem]:
    """Returns the problems of a Parquet file in its order.

    Raises `DataError` if the file is unreadable or empty, an id occurs twice, or a row is no problem.
    """
    problems = {}
    for problem in _problems(task, path):
        if problem.id in problems:
            raise DataError(f"{path}: problem id {problem.id!r} occurs twice")
        problems[problem.id] = problem
    return list(problems.values())


def _problems(task: Task, path: str | Path) -> Iterator[Problem]:
    empty = True
    for row in stream_rows(path, task.schema):
        name, empty = row["problem_id"], False
        if not name:
            raise DataError(f"{path}: problem id {name!r} is not allowed; allowed: a text that is not empty")
        try:
            yield task.problem(row)
        except DataError as error:
            raise DataError(f"{path}: problem {name!r} {error}") from None
    if empty:
        raise DataError(f"{path}: holds no problems")
