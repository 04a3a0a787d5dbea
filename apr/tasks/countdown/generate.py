"""Random solvable problems, unique over all splits by (sorted numbers, target)."""

from collections.abc import Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from apr.core.errors import ParamsError
from apr.core.files import atomic_path
from apr.core.params import Params, Problems
from apr.core.progress import track
from apr.core.seeds import derive_rng
from apr.tasks.countdown.problem import PROBLEM_SCHEMA, Problem
from apr.tasks.countdown.solvable import solvable

SPLITS = ("test", "validation", "train")
"""In the order of generation: a larger training set changes neither test nor validation."""

ATTEMPTS = 10_000

ROWS, BATCH = 100_000, 1000
"""Problems per row group, which is in memory as Arrow columns, and of those as Python objects."""


def draw_problem(settings: Problems, problem_id: str, seed: int, taken: set[int]) -> Problem:
    """A solvable problem whose key is not in `taken`, uniform over draws from the ranges of `settings`; its
    key is added."""
    rng = derive_rng(seed, problem_id)
    for _ in range(ATTEMPTS):
        numbers = tuple(sorted(rng.randint(*settings.number_range) for _ in range(settings.numbers)))
        target = rng.randint(*settings.target_range)
        key = _key(settings, numbers, target)
        if key not in taken and solvable(numbers, target, settings.max_value):
            taken.add(key)
            return Problem(problem_id, numbers, target)
    raise ParamsError(
        f"problems: no new solvable problem in {ATTEMPTS} draws after {len(taken)}; "
        "allowed: fewer problems, or wider number_range and target_range"
    )


def _key(settings: Problems, numbers: tuple[int, ...], target: int) -> int:
    """Sorted numbers and target as one integer."""
    key = target
    for number in numbers:
        key = key * (settings.number_range[1] + 1) + number
    return key


def stream_problems(settings: Problems, seed: int) -> Iterator[tuple[str, Problem]]:
    """Split and problem, one after another."""
    taken: set[int] = set()
    for split in SPLITS:
        for index in range(getattr(settings, split)):
            yield split, draw_problem(settings, f"{split}-{index:07d}", seed, taken)


def generate_problems(settings: Problems, seed: int) -> dict[str, list[Problem]]:
    """The problems of each split, by name."""
    splits: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    for split, problem in stream_problems(settings, seed):
        splits[split].append(problem)
    return splits


def make_problems(params: Params, out: Path) -> None:
    """Writes ``{train,validation,test}.parquet`` into the directory `out`, all or nothing."""
    total = sum(getattr(params.problems, split) for split in SPLITS)
    drawn = track(stream_problems(params.problems, params.seed), "problems", total, "problem")
    with atomic_path(out) as partial:
        partial.mkdir()
        for split, problems in groupby(drawn, itemgetter(0)):
            tables = _tables(problem for _, problem in problems)
            with pq.ParquetWriter(partial / f"{split}.parquet", PROBLEM_SCHEMA, compression="zstd") as writer:
                while group := list(islice(tables, ROWS // BATCH)):
                    writer.write_table(pa.concat_tables(group).combine_chunks())


def _tables(problems: Iterator[Problem]) -> Iterator[pa.Table]:
    """Of `BATCH` problems each."""
    while batch := list(islice(problems, BATCH)):
        columns = ([problem.id for problem in batch], [problem.numbers for problem in batch],
                   [problem.target for problem in batch])  # fmt: skip
        yield pa.table(list(columns), schema=PROBLEM_SCHEMA)
