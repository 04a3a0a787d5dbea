"""The problems of a file one after another, however many there are."""

from collections.abc import Iterator
from pathlib import Path

from apr.core.errors import DataError
from apr.core.files import stream_rows
from apr.tasks.countdown.problem import PROBLEM_SCHEMA, Problem, problem_of_row


def stream_problems(path: str | Path) -> Iterator[Problem]:
    """The problems of a Parquet file in its order, which is that of their ids, shorter ones first.

    Raises `DataError` for what `read_problems` does, when it comes there, and for an id out of order: so none
    occurs twice, and none need be kept to know it.
    """
    before = (0, "")
    for row in stream_rows(path, PROBLEM_SCHEMA):
        problem = problem_of_row(path, row)
        place = (len(problem.id), problem.id)
        if place <= before:
            raise DataError(f"{path}: problem id {problem.id!r} after {before[1]!r}; allowed: ascending ids")
        before = place
        yield problem
    if before == (0, ""):
        raise DataError(f"{path}: holds no problems")
