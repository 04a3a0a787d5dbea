"""How a policy changes while it is trained: greedy rollouts of the same few problems, kept at some steps."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from apr.core.files import read_rows, write_rows
from apr.core.ranks import rank
from apr.rollouts.records import THREAD_SCHEMA, rows_of
from apr.rollouts.rollout import Request, Rollout

SNAPSHOT_SCHEMA = pa.schema([("step", pa.int32()), ("problem_id", pa.string()), *THREAD_SCHEMA])
PROBLEMS = 4
"""Validation problems that are decoded, from the first on."""
INTERVALS = 4
"""Snapshots are as many steps apart, and so one more."""


def snapshot_steps(steps: int) -> list[int]:
    """Steps of training after which the policy is asked, from 0 (the SFT model) to `steps`."""
    return sorted({round(steps * place / INTERVALS) for place in range(INTERVALS + 1)})


class Snapshots(TrainerCallback):
    """Writes a file per snapshot into `folder`, and leaves training as it is: greedy decoding draws no noise,
    and changes no weight.

    A file that is there stays, so a run that resumes adds those that it lacks. Every process has to be asked,
    the first one writes.
    """

    def __init__(
        self, folder: Path, requests: Sequence[Request], decode: Callable[[Sequence[Request]], list[Rollout]],
        inner_updates: int, steps: int,
    ):  # fmt: skip
        self._folder, self._requests, self._decode = folder, requests, decode
        self._inner_updates, self._steps = inner_updates, snapshot_steps(steps)

    def on_step_begin(self, args, state, control, **_):
        self._take(state.global_step)

    def on_train_end(self, args, state, control, **_):
        """A training that ends before its last step does has its end for that."""
        end = state.global_step // self._inner_updates
        self._steps = [step for step in self._steps if step < end] + [end]
        self._take(state.global_step)

    def _take(self, updates: int) -> None:
        step, within = divmod(updates, self._inner_updates)
        path = self._path(step)
        if within or step not in self._steps or broadcast_object_list([path.is_file()])[0]:
            return
        first = rank() == 0  # the others lend it their weights if those are sharded
        rollouts = self._decode(self._requests if first else [])
        if first:
            write_rows(path, [{"step": step, "problem_id": rollout.id, **row}
                              for rollout in rollouts for row in rows_of(rollout)], SNAPSHOT_SCHEMA)

    def write(self, out: Path) -> None:
        """All snapshots as one file: a row per step, problem and thread."""
        rows = [row for step in self._steps for row in read_rows(self._path(step), SNAPSHOT_SCHEMA)]
        write_rows(out, rows, SNAPSHOT_SCHEMA)

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}.parquet"
