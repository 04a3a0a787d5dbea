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

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apr.core.errors import DataError
from apr.core.files import atomic_path, count_rows
from apr.core.params import Grammar, Params, TraceMethod
from apr.core.process import end_with, identity
from apr.core.progress import track
from apr.core.seeds import derive_rng
from apr.language import Condition, Language
from apr.language import events as ev
from apr.language.tokenizer import load_language
from apr.tasks.countdown import Problem
from apr.tasks.countdown.kernel import Tables, load_search, search
from apr.tasks.countdown.search import ROOT_THREAD, Trace, TraceThread, solve_trace
from apr.tasks.countdown.stream import stream_problems

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

INJECTED = (ev.RootPrompt, ev.ChildPrompt, ev.Joined)
"""What a model reads and never writes: it carries no loss."""


def encode_thread(language: Language, thread: TraceThread) -> tuple[list[int], list[bool]]:
    """Token ids of a thread, and for each whether the model itself would sample it."""
    ids: list[int] = []
    mask: list[bool] = []
    for event in thread.events:
        piece = language.encode([event])
        ids += piece
        mask += [not isinstance(event, INJECTED)] * len(piece)
    return ids, mask


def token_budget(language: Language, root: TraceThread, cut: bool, grammar: Grammar, rng: Random) -> int:
    """The budget that a serial trace is an example of: its length, prompt included, rounded up.

    If it is to be `cut`, or is longer than the window: any budget up to that, for `give_up` to keep.
    """
    length, step = len(encode_thread(language, root)[0]), grammar.token_step
    amount = ceil(length / step) * step
    while length + len(("tokens", *language.vocabulary.number(amount))) > amount:
        amount += step
    if not cut and amount <= grammar.window:
        return amount
    smaller = range(2 * step, min(amount, grammar.window) + 1, step)
    return rng.choice(smaller) if smaller else amount


def give_up(language: Language, root: TraceThread, budget: int) -> None:
    """Ends a search that needs more than `budget` tokens after its last step that leaves room for the end."""
    if len(encode_thread(language, root)[0]) <= budget:
        return
    prompt, end = root.events[0], ev.Answer(None)
    room = budget - len(language.encode([prompt, end]))
    kept = [prompt]
    for event in root.events[1:]:
        room -= len(language.encode([event]))
        if room < 0:
            break
        kept.append(event)
    root.events, root.path = [*kept, end], None


def draw_trace(problem: Problem, name: str, method: TraceMethod, params: Params) -> Trace | None:
    """The demonstration of one problem; the shortest that solves it among `method.candidates`."""
    rng = derive_rng(params.seed, "trace", name, problem.id)
    traces = [
        solve_trace(problem, method, params.problems.max_value, rng) for _ in range(method.candidates)
    ]
    solved = [trace for trace in traces if trace.solved]
    if not solved:
        return None if method.only_solved else traces[0]
    return min(solved, key=lambda trace: sum(len(thread.events) for thread in trace.threads))


def _condition(
    language: Language, trace: Trace, method: TraceMethod, grammar: Grammar, rng: Random
) -> Condition | None:
    """What the prompt asks for: the children that were spawned or a budget of tokens; or nothing."""
    if rng.random() >= method.condition_share:
        return None
    if method.solver != "apr":
        cut = rng.random() < method.cut_share
        return Condition("tokens", token_budget(language, trace.threads[0], cut, grammar, rng))
    return Condition("children", trace.children) if trace.children <= grammar.max_children else None


def trace_rows(problem: Problem, name: str, params: Params, language: Language) -> list[dict[str, Any]]:
    """The rows of one problem; none if a thread of its trace does not fit the window."""
    method = params.traces.methods[name]
    trace = draw_trace(problem, name, method, params)
    if trace is None:
        return []
    root = trace.threads[0]
    rng = derive_rng(params.seed, "condition", name, problem.id)
    condition = _condition(language, trace, method, params.grammar, rng)
    root.events[0] = ev.RootPrompt(problem.target, problem.numbers, condition)
    if method.solver != "apr":
        give_up(language, root, condition.amount if condition else params.grammar.window)
    rows = []
    for index, thread in enumerate(trace.threads):
        ids, mask = encode_thread(language, thread)
        if len(ids) > params.grammar.window:
            return []
        rows.append({
            "trace_id": f"{name}/{problem.id}", "problem_id": problem.id,
            "thread": index, "parent": thread.parent,
            "role": "root" if thread.parent == ROOT_THREAD else "child",
            "token_ids": ids, "loss_mask": mask,
            "condition_kind": condition.kind if condition else None,
            "condition_amount": condition.amount if condition else None,
            "children": trace.children, "solved": thread.path is not None, "length": len(ids),
        })  # fmt: skip
    return rows


_language = cache(load_language)  # once per process


@cache
def _tables(language: Language) -> Tables:
    """Of one language per process."""
    return Tables(language)


def chunk_table(problems: list[Problem], name: str, params: Params, language: Language) -> pa.Table:
    """The rows of many problems, in their order: by `search`, and of what that leaves by `trace_rows`."""
    for problem in problems:
        language.require_depths(problem.numbers)
    rows, ids, mask, left = search(problems, name, params, _tables(language))
    table, start, parts = _table(rows, ids, mask, problems, name, params), 0, []
    for index in left:
        end = int(np.searchsorted(rows["problem"], index))
        made = pa.Table.from_pylist(trace_rows(problems[index], name, params, language), schema=TRACE_SCHEMA)
        parts += [table.slice(start, end - start), made]
        start = end
    return pa.concat_tables([*parts, table.slice(start)]).combine_chunks()


def _table(
    rows: np.ndarray, ids: np.ndarray, mask: np.ndarray, problems: list[Problem], name: str, params: Params
) -> pa.Table:
    """`TRACE_SCHEMA` of what `search` returns."""
    kind = "children" if params.traces.methods[name].solver == "apr" else "tokens"
    problem = pa.array(rows["problem"])
    starts = pa.array(np.cumsum([0, *rows["length"]]), pa.int32())
    conditioned = rows["amount"] >= 0
    return pa.Table.from_pydict({
        "trace_id": pa.array([f"{name}/{problem.id}" for problem in problems]).take(problem),
        "problem_id": pa.array([problem.id for problem in problems]).take(problem),
        "thread": rows["thread"], "parent": rows["parent"],
        "role": pa.array(["root", "child"]).take(pa.array((rows["thread"] > 0).astype(np.int8))),
        "token_ids": pa.ListArray.from_arrays(starts, pa.array(ids)),
        "loss_mask": pa.ListArray.from_arrays(starts, pa.array(mask)),
        "condition_kind": pa.array([None, kind]).take(pa.array(conditioned.astype(np.int8))),
        "condition_amount": pa.array(rows["amount"], mask=~conditioned), "children": rows["children"],
        "solved": rows["solved"] > 0, "length": rows["length"],
    }, schema=TRACE_SCHEMA)  # fmt: skip


def _chunk_table(problems: list[Problem], name: str, params: Params, tokenizer: Path) -> pa.Table:
    return chunk_table(problems, name, params, _language(tokenizer))


def trace_tables(
    problems: Iterable[Problem], name: str, params: Params, tokenizer: Path, workers: int
) -> Iterator[pa.Table]:
    """One table per chunk of problems, in their order, made by `workers` processes.

    No more is in memory than what they are at and have yet to take, two chunks each.
    """
    load_search()  # compiles it once, before several processes do
    problems = iter(problems)
    make = partial(_chunk_table, name=name, params=params, tokenizer=tokenizer)
    chunks = iter(lambda: list(islice(problems, CHUNK)), [])
    if workers == 1:
        yield from map(make, chunks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), end_with, (identity(),))
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
    chosen = islice(stream_problems(problems), count)
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
