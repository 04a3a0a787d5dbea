"""Demonstrations of one method for the training problems: a Parquet row per thread."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import islice
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from apr.core.errors import DataError
from apr.core.files import atomic_path, count_rows
from apr.core.params import DEVICES, Mixture, Params, TraceMethod
from apr.core.process import identity, work_for
from apr.core.progress import track
from apr.core.seeds import derive_rng
from apr.language import Condition
from apr.language.tokenizer import load_language
from apr.tasks import open_task
from apr.tasks.problems import stream_problems
from apr.tasks.task import Problem, Task, Trace, TraceThread, children_of

TRACE_SCHEMA = pa.schema({
    "trace_id": pa.string(), "problem_id": pa.string(), "thread": pa.int32(), "parent": pa.int32(),
    "role": pa.string(), "token_ids": pa.list_(pa.int32()), "loss_mask": pa.list_(pa.bool_()),
    "condition_kind": pa.string(), "condition_amount": pa.int32(), "children": pa.int32(),
    "solved": pa.bool_(), "length": pa.int32(),
})  # fmt: skip

CHUNK = 250
"""Problems per task of a worker, and of a row group; the bytes do not depend on the workers."""
GROUPS = 1000
"""Row groups of a file at most, of several chunks where there are more: each takes 20 KB until the end."""
RELEASED = 8
"""Row groups after which freed memory is given back, which takes as long as to trace a few problems."""


def draw_trace(task: Task, problem: Problem, name: str, method: TraceMethod) -> Trace | None:
    """Returns the demonstration of a problem: of `method.candidates` that of fewest steps that solves it."""
    rng = derive_rng(task.params.seed, "trace", name, problem.id)
    traces = [task.demonstrate(problem, method, rng) for _ in range(method.candidates)]
    solved = [trace for trace in traces if trace[0].solved]
    if not solved:
        return None if method.only_solved else traces[0]
    return min(solved, key=lambda trace: sum(len(thread.ends) for thread in trace))


def demonstrator(task: Task, problem: Problem, name: str) -> str:
    """Returns the method that demonstrates a problem: of a mixture, one of those that it mixes, at random."""
    method = task.params.traces.methods[name]
    if not isinstance(method, Mixture):
        return name
    rng = derive_rng(task.params.seed, "mixture", name, problem.id)
    return rng.choices([*method.shares], [*method.shares.values()])[0]


def draw_condition(task: Task, trace: Trace, method: TraceMethod, rng: Random) -> Condition | None:
    """Returns what the prompt asks for: the children that were spawned or a budget of tokens; or devices,
    whatever the trace; or nothing."""
    if method.devices_share and rng.random() < method.devices_share:
        return Condition("devices", rng.choice(DEVICES))
    if rng.random() >= method.condition_share:
        return None
    if not method.spawns:
        cut = rng.random() < method.cut_share
        return Condition("tokens", token_budget(task, len(trace[0].ids), cut, rng))
    children = children_of(trace)
    return Condition("children", children) if children <= task.params.grammar.max_children else None


def token_budget(task: Task, length: int, cut: bool, rng: Random) -> int:
    """Returns the budget that a serial trace is an example of: its `length`, prompt included, rounded up.

    If it is to be `cut`, or is longer than the window: any budget up to that, for `give_up` to keep.
    """
    step, window = task.params.grammar.token_step, task.params.grammar.window
    amount = ceil(length / step) * step
    while length + 1 + len(task.language.vocabulary.number(amount)) > amount:
        amount += step
    if not cut and amount <= window:
        return amount
    smaller = range(2 * step, min(amount, window) + 1, step)
    return rng.choice(smaller) if smaller else amount


def asked(task: Task, problem: Problem, trace: Trace, condition: Condition | None) -> Trace:
    """Returns the trace under a condition, which its root's prompt then says."""
    if condition is None:
        return trace
    root, prompt = trace[0], task.prompt(problem, condition)
    longer = len(prompt) - root.ends[0]
    ids, ends = prompt + root.ids[root.ends[0] :], [end + longer for end in root.ends]
    return [root._replace(ids=ids, ends=ends), *trace[1:]]


def give_up(task: Task, root: TraceThread, budget: int) -> TraceThread:
    """Ends a search that needs more than `budget` tokens after its last step that leaves room for the end."""
    if len(root.ids) <= budget:
        return root
    end = task.language.syntax.no_answer()
    kept = [at for place, at in enumerate(root.ends) if place == 0 or at + len(end) <= budget]
    ids = root.ids[: kept[-1]] + end
    return root._replace(ids=ids, ends=[*kept, len(ids)], solved=False)


def trace_rows(task: Task, problem: Problem, name: str) -> list[dict[str, Any]]:
    """Returns the rows of one problem, without loss masks; none if a thread of its trace does not fit the
    window. Those of a mixture are the rows of the method that demonstrates the problem."""
    name = demonstrator(task, problem, name)
    method, window = task.params.traces.parts(name)[name], task.params.grammar.window
    trace = draw_trace(task, problem, name, method)
    if trace is None:
        return []
    rng = derive_rng(task.params.seed, "condition", name, problem.id)
    condition = draw_condition(task, trace, method, rng)
    root, *children = asked(task, problem, trace, condition)
    if not method.spawns:
        root = give_up(task, root, condition.amount if condition else window)
    threads = [root, *children]
    if any(len(thread.ids) > window for thread in threads):
        return []
    return [{
        "trace_id": f"{name}/{problem.id}", "problem_id": problem.id, "thread": index,
        "parent": thread.parent, "role": "root" if thread.parent < 0 else "child",
        "token_ids": thread.ids, "condition_kind": condition and condition.kind,
        "condition_amount": condition and condition.amount, "children": children_of(threads),
        "solved": thread.solved, "length": len(thread.ids),
    } for index, thread in enumerate(threads)]  # fmt: skip


_language = cache(load_language)  # once per process


def chunk_table(task: Task, problems: list[Problem], name: str) -> pa.Table:
    """Returns the rows of many problems, in their order."""
    rows = [row for problem in problems for row in trace_rows(task, problem, name)]
    place = TRACE_SCHEMA.get_field_index("loss_mask")
    table = pa.Table.from_pylist(rows, schema=TRACE_SCHEMA.remove(place))
    ids = table["token_ids"].combine_chunks()
    mask = task.language.syntax.sampled(ids.values.to_numpy())
    return table.add_column(place, TRACE_SCHEMA[place], pa.ListArray.from_arrays(ids.offsets, pa.array(mask)))


def _chunk_table(problems: list[Problem], name: str, params: Params, tokenizer: Path) -> pa.Table:
    return chunk_table(open_task(params, _language(tokenizer)), problems, name)


def trace_tables(
    problems: Iterable[Problem], name: str, params: Params, tokenizer: Path, workers: int
) -> Iterator[pa.Table]:
    """One table per chunk of problems, in their order, made by `workers` processes.

    No more is in memory than what they are at and have yet to take, two chunks each.
    """
    problems = iter(problems)
    make = partial(_chunk_table, name=name, params=params, tokenizer=tokenizer)
    chunks = iter(lambda: list(islice(problems, CHUNK)), [])
    if workers == 1:
        yield from map(make, chunks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), work_for, (identity(),))
    with pool:
        made = deque(pool.submit(make, chunk) for chunk in islice(chunks, 2 * workers))
        while made:
            yield made.popleft().result()
            made.extend(pool.submit(make, chunk) for chunk in islice(chunks, 1))


def make_traces(
    params: Params, method: str, problems: Path, tokenizer: Path, out: Path, workers: int = 1
) -> None:
    """Writes the traces of `method` for the first `params.traces.problems` training problems, in the language
    of the directory `tokenizer`.

    Raises `CheckpointError` if that has none, and `DataError` as `stream_problems` does, or if the window
    keeps no trace at all.
    """
    count = min(params.traces.problems, count_rows(problems))
    chosen = islice(stream_problems(open_task(params), problems), count)
    kept = 0
    with atomic_path(out) as partial_path:
        with pq.ParquetWriter(partial_path, TRACE_SCHEMA, compression="zstd") as writer:
            tables, total = trace_tables(chosen, method, params, tokenizer, workers), ceil(count / CHUNK)
            tables = track(tables, f"traces {method}", total, unit="chunk")
            groups = iter(lambda: list(islice(tables, ceil(total / GROUPS))), [])
            for number, group in enumerate(groups):
                table = pa.concat_tables(group).combine_chunks()
                kept += table.num_rows
                writer.write_table(table, row_group_size=max(1, table.num_rows))
                if number % RELEASED == 0:  # or holes between what is kept add up
                    pa.default_memory_pool().release_unused()
        if not kept:
            raise DataError(f"{problems}: no trace of {method} fits grammar.window = {params.grammar.window}")
