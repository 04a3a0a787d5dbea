"""Files that are whole or absent: everything is written beside its place and renamed into it."""

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from apr.core.errors import DataError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path` to write a file or directory to; renames it into place on success.

    Removes what processes that were killed have left of earlier attempts.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    for left in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        if left == partial or not psutil.pid_exists(int(left.name.rpartition("-")[2])):
            remove(left)
    try:
        yield partial
        if path.is_dir() and not path.is_symlink():
            remove(path)
        os.replace(partial, path)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Removes a file or a directory tree if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text)


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: str | Path) -> Any:
    """The JSON value in `path`. Raises `DataError` if it is missing or broken."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from None


def write_rows(path: str | Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Writes `rows` as zstd Parquet in the order given, with exactly the columns of `schema`."""
    table = pa.Table.from_pylist(rows, schema=schema)
    with atomic_path(path) as partial:
        pq.write_table(table, partial, compression="zstd")


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).partition(chr(10))[0]})") from None


def _check_columns(path: str | Path, found: pa.Schema, wanted: pa.Schema) -> None:
    for field in wanted:
        if field.name not in found.names:
            raise DataError(f"{path}: column {field.name!r} is missing")
        if found.field(field.name).type != field.type:
            raise DataError(f"{path}: column {field.name!r} has type {found.field(field.name).type}, "
                            f"expected {field.type}")  # fmt: skip


def read_table(path: str | Path, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` from a Parquet file.

    Raises `DataError`, naming the file, if it is missing, truncated, not Parquet, or lacks a column or
    holds it with another type.
    """
    with _readable(path), pq.ParquetFile(path) as file:  # `pq.read_table` would import pandas
        table = file.read()
    _check_columns(path, table.schema, schema)
    return table.select(schema.names)


def count_rows(path: str | Path) -> int:
    """The number of rows of a Parquet file. Raises `DataError` if it is missing or not one."""
    with _readable(path):
        return pq.read_metadata(path).num_rows


def stream_rows(path: str | Path, schema: pa.Schema, batch: int = 1000) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, `batch` of them in memory at a time; errors as `read_table`."""
    with _readable(path), pq.ParquetFile(path, buffer_size=1 << 16) as file:
        _check_columns(path, file.schema_arrow, schema)
        for rows in file.iter_batches(batch, columns=schema.names):
            yield from rows.select(schema.names).to_pylist()


def read_rows(path: str | Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """The rows of a Parquet file as dictionaries; errors as `read_table`."""
    table = read_table(path, schema)
    with _readable(path):
        return table.to_pylist()


def open_work(work: Path, identity: Any) -> str | None:
    """The last whole trainer state in `work`, to go on from; None if there is none.

    `identity` is a JSON value of everything that the run depends on; a directory of another run is cleared.
    """
    marker = work / "run.json"
    try:
        same = read_json(marker) == identity
    except DataError:
        same = False
    if not same:
        remove(work)
        work.mkdir(parents=True)
        write_json(marker, identity)
    for state in {*work.glob("checkpoint-*")} - {*trainer_states(work)}:
        remove(state)
    return str(states[-1]) if (states := trainer_states(work)) else None


def trainer_states(work: Path) -> list[Path]:
    """The whole trainer states in `work`, oldest first."""
    states = [path for path in work.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return sorted(states, key=lambda state: int(state.name.split("-")[1]))  # the file is written last
