"""Thread trees as report and demo show them: as JSON, and what draws that in a browser (`draw.js`)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from apr.language import Malformed
from apr.rollouts.replay import Part, parts_of
from apr.rollouts.rollout import Rollout, Status
from apr.rollouts.verdict import judge
from apr.tasks.task import Problem, Task


class Timeline(NamedTuple):
    """In decoding steps, one per sampled token of a thread; what is injected takes none."""

    starts: list[list[int]]
    """When each part of each thread begins to sample."""
    ends: list[int]
    """When each thread ends; the root's is the rollout's number of sequential tokens."""
    critical: set[int]
    """Threads of the longest chain of dependent decoding."""


def timeline(threads: Sequence[Sequence[Part]]) -> Timeline:
    """When what would run if all threads that can decode do: children begin where their parent has spawned
    them, and it goes on when the last of them has ended. One that waits for the first success does so too, as
    that cuts the others to its length."""
    starts: list[list[int]] = [[] for _ in threads]
    ends = [0] * len(threads)

    def run(index: int, now: int) -> int:
        for part in threads[index]:
            starts[index].append(now)
            now += part.sampled
            now = max((run(child, now) for child in part.spawned), default=now)
        ends[index] = now
        return now

    run(0, 0)
    chain = [0]
    for index in chain:
        chain += [max(part.spawned, key=ends.__getitem__) for part in threads[index] if part.spawned]
    return Timeline(starts, ends, set(chain))


def rollout_entry(
    task: Task, problem: Problem, rollout: Rollout, name: str, note: str = ""
) -> dict[str, Any]:
    """A rollout as JSON: verdict, token counts, and its threads with their parts.

    A part is: the step at which it begins, its sampled tokens, the text it reads, the text it samples, and
    the threads that it spawns.
    """
    threads, judged, usage = parts_of(rollout), judge(task, problem, rollout), rollout.usage
    when, decode, entries = timeline(threads), task.language.vocabulary.decode, []
    for thread, parts, starts in zip(rollout.threads, threads, when.starts, strict=True):
        at, pieces = 0, []
        for part, start in zip(parts, starts, strict=True):
            middle, end = at + part.read, at + part.read + part.sampled
            texts = decode(thread.ids[at:middle]), decode(thread.ids[middle:end])
            pieces.append([start, part.sampled, *texts, part.spawned])
            at = end
        returned = task.language.syntax.returned(thread.ids)
        if thread.parent < 0 or thread.status != Status.DONE or isinstance(returned, Malformed):
            returned = task.language.syntax.nothing
        entries.append({
            "parent": thread.parent, "depth": thread.depth, "status": str(thread.status),
            "reason": thread.reason, "end": when.ends[thread.index], "parts": pieces,
            "critical": thread.index in when.critical, "returned": decode(returned),
        })  # fmt: skip
    return {"name": name, "note": note, "solved": judged.strict, "answer": judged.answer,
            "reason": judged.reason, "total": usage.total, "sequential": usage.sequential,
            "children": usage.children, "threads": entries}  # fmt: skip
