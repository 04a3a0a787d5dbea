"""Rollouts as Parquet: a row per thread."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import pyarrow as pa

from apr.rollouts.rollout import Rollout, Spawn, Status, Thread

_SPAWN = pa.struct({"at": pa.int32(), "children": pa.list_(pa.int32())})
THREAD_SCHEMA = pa.schema({
    "rollout_id": pa.string(), "thread": pa.int32(), "parent": pa.int32(), "depth": pa.int32(),
    "prompt_length": pa.int32(), "token_ids": pa.list_(pa.int32()), "sampled": pa.list_(pa.bool_()),
    "logprobs": pa.list_(pa.float32()), "status": pa.string(), "reason": pa.string(),
    "spawns": pa.list_(_SPAWN),
})  # fmt: skip
"""The fields of `Thread`, under the id of its rollout."""


def rows_of(rollout: Rollout) -> Iterator[dict[str, Any]]:
    """The rows of a rollout, in the order of its threads."""
    for thread in rollout.threads:
        yield {"rollout_id": rollout.id, "thread": thread.index, "parent": thread.parent,
               "depth": thread.depth, "prompt_length": thread.prompt_length, "token_ids": thread.ids,
               "sampled": thread.sampled, "logprobs": thread.logprobs, "status": str(thread.status),
               "reason": thread.reason, "spawns": [vars(spawn) for spawn in thread.spawns]}  # fmt: skip


def rollouts_of(rows: Iterable[Mapping[str, Any]]) -> list[Rollout]:
    """The rollouts of rows as `rows_of` gives them, one after another."""
    return [Rollout(name, [_thread(row) for row in group])
            for name, group in groupby(rows, key=lambda row: row["rollout_id"])]  # fmt: skip


def _thread(row: Mapping[str, Any]) -> Thread:
    return Thread(row["thread"], row["parent"], row["depth"], row["prompt_length"], row["token_ids"],
                  row["sampled"], row["logprobs"], Status(row["status"]), row["reason"],
                  [Spawn(**spawn) for spawn in row["spawns"]])  # fmt: skip
