"""The viewer's data by hand: when what ran, which problems are shown, what is said of a thread."""

import random

import numpy as np
import pytest

from apr.core.files import read_rows, write_rows
from apr.core.params import load_params
from apr.evaluation.points import Point
from apr.evaluation.results import Cell, Key
from apr.results.report.trees import choose, compared
from apr.results.threads import rollout_entry, timeline
from apr.rollouts.records import THREAD_SCHEMA, rollouts_of, rows_of
from apr.rollouts.replay import Part, parts_of
from apr.rollouts.rollout import Rollout, Spawn, Status, Thread
from apr.tasks import open_task
from apr.tasks.countdown.problem import Problem


@pytest.mark.parametrize(
    "threads, starts, ends, critical",
    [
        ([[Part(8, 5, [])]], [[0]], [5], {0}),
        # The root samples 5 and spawns; its children sample 3 and 7; it reads what they join and samples 4.
        ([[Part(8, 5, [1, 2]), Part(6, 4, [])], [Part(4, 3, [])], [Part(4, 7, [])]],
         [[0, 12], [5], [5]], [16, 8, 12], {0, 2}),
        # The first of equals is on the path; a child that never started ends where it was spawned.
        ([[Part(8, 5, [1, 2, 3]), Part(6, 4, [])], [Part(4, 3, [])], [Part(4, 3, [])], [Part(4, 0, [])]],
         [[0, 8], [5], [5], [5]], [12, 8, 8, 5], {0, 1}),
        # Two spawns one after another, and a child of a child on the second's path.
        ([[Part(8, 2, [1]), Part(3, 1, [2, 3]), Part(3, 1, [])], [Part(4, 6, [])], [Part(4, 4, [])],
          [Part(4, 1, [4]), Part(3, 1, [])], [Part(4, 5, [])]],
         [[0, 8, 16], [2], [9], [9, 15], [10]], [17, 8, 13, 16, 15], {0, 1, 3, 4}),
        # The joined messages did not fit: the parent ends with its last child.
        ([[Part(8, 5, [1])], [Part(4, 3, [])]], [[0], [5]], [8, 8], {0, 1}),
    ],
)  # fmt: skip
def test_timeline_by_hand(threads, starts, ends, critical):
    assert timeline(threads) == (starts, ends, critical)


def grown(rng, threads, parent, depth):
    """A random thread, and below it the threads that it spawns."""
    index = len(threads)
    thread = Thread(index, parent, depth, 3, [0] * 3, [False] * 3, [], Status.DONE)
    threads.append(thread)
    for _ in range(rng.randrange(3) if depth < 3 else 0):
        sampled = rng.randrange(1, 9)
        thread.ids += [0] * sampled
        thread.sampled += [True] * sampled
        children = [grown(rng, threads, index, depth + 1) for _ in range(rng.randrange(1, 4))]
        thread.spawns.append(Spawn(len(thread.ids), children))
        thread.ids += [0] * 2
        thread.sampled += [False] * 2
    last = rng.randrange(9)
    thread.ids += [0] * last
    thread.sampled += [True] * last
    return index


def test_a_timeline_adds_up_to_the_ledger():
    """The root ends at the number of sequential tokens, all of which the critical threads have sampled."""
    sizes = set()
    for seed in range(60):
        grown(random.Random(seed), threads := [], -1, 0)
        rollout = Rollout("r", threads)
        parts = parts_of(rollout)
        when = timeline(parts)
        sampled = [sum(part.sampled for part in parts[index]) for index in when.critical]
        assert when.ends[0] == rollout.usage.sequential == sum(sampled)
        sizes.add(len(threads))
    assert max(sizes) > 30 and 1 in sizes


def cell(**columns):
    arrays = {name: np.array(values)[:, None] for name, values in columns.items()}
    return Cell(tuple(f"p{row}" for row in range(len(columns["strict"]))), arrays)


def test_choice_by_hand():
    found = choose(cell(strict=[True, False, True, False, True, False], total=[50, 10, 30, 90, 20, 40],
                        children=[2, 0, 3, 3, 1, 0], depth=[1, 0, 1, 1, 2, 0],
                        sequential=[30, 10, 9, 40, 12, 40]))  # fmt: skip
    # Solved have 20, 30, 50 tokens; failed 10, 40, 90; of two with three children p3 has more tokens.
    assert found == {"p2": ["solved"], "p5": ["failed"], "p3": ["widest"], "p4": ["deepest"]}


def test_choice_where_nothing_is_solved():
    same = {name: [5, 5] for name in ("total", "children", "depth", "sequential")}
    found = choose(cell(strict=[False, False], **same))
    assert found == {"p0": ["failed", "widest", "deepest"]}


def test_what_is_compared(params):
    assert compared(params) == [
        (("sft", "sos_plus"), Point(None, 0.0, 0)), (("rl", "sos_plus"), Point(None, 0.0, 0)),
        (("sft", "apr"), Point(None, 0.0, 0)), (("rl", "apr"), Point(None, 0.0, 0)),
        (("rl", "apr_max"), Point(10, 0.0, 0)),
    ]  # fmt: skip
    keys = [Key(model.name, model.phase, at.temperature, at.condition) for model, at in compared(params)]
    assert str(keys[-1]) == "rl/apr_max condition 10 T=0"


TEXTS = [
    ("<root> 27 :0 3 5 9 go", "spawn 27 :1 #2 9 - 5 = 4 3 #1 9 / 3 = 3 5 run",
     "joined none joined 9 / 3 = 3 , 3 * 5 = 15 resume", "answer none end"),
    ("<child> 27 :1 9 - 5 = 4 3 go", "join none end"),
    ("<child> 27 :1 9 / 3 = 3 5 go", "join 9 / 3 = 3 , 3 * 5 = 15 end"),
]  # fmt: skip


@pytest.fixture(scope="module")
def task():
    params = load_params("params.yaml")
    return open_task(params)


@pytest.fixture
def rollout(task):
    threads = []
    for index, texts in enumerate(TEXTS):
        pieces = [task.language.vocabulary.encode(text) for text in texts]
        ids = [token for piece in pieces for token in piece]
        sampled = [place % 2 == 1 for place, piece in enumerate(pieces) for _ in piece]
        spawns = [] if index else [Spawn(len(pieces[0]) + len(pieces[1]), [1, 2])]
        threads.append(Thread(index, -1 if index == 0 else 0, min(index, 1), len(pieces[0]), ids, sampled,
                              [0.0] * len(ids), Status.DONE, "", spawns))  # fmt: skip
    return Rollout("r", threads)


def test_an_entry_by_hand(task, rollout):
    shown = rollout_entry(task, Problem("p", (3, 5, 9), 27), rollout, "here")
    facts = ("name", "solved", "answer", "reason", "total", "sequential", "children")
    assert [shown[name] for name in facts] == [
        "here", False, "none", "declares no solution", 18 + 3 + 3 + 13, 18 + 13 + 3, 2
    ]  # fmt: skip
    root, first, second = shown["threads"]
    assert root["parts"] == [[0, 18, TEXTS[0][0], TEXTS[0][1], [1, 2]], [31, 3, TEXTS[0][2], TEXTS[0][3], []]]
    assert first["parts"] == [[18, 3, *TEXTS[1], []]] and first["end"] == 21
    assert [(thread["returned"], thread["critical"]) for thread in (first, second)] == [
        ("none", False), ("9 / 3 = 3 , 3 * 5 = 15", True)
    ]  # fmt: skip


def test_what_was_cancelled_has_returned_nothing(task, rollout):
    rollout.threads[2].status, rollout.threads[2].reason = Status.TRUNCATED, "window full"
    thread = rollout_entry(task, Problem("p", (3, 5, 9), 27), rollout, "here")["threads"][2]
    assert (thread["returned"], thread["status"], thread["reason"]) == ("none", "truncated", "window full")


def test_rollouts_survive_parquet(rollout, tmp_path):
    other = Rollout("s", [Thread(0, -1, 0, 1, [4, 5], [False, True], [0.0, -0.5], Status.MALFORMED, "why")])
    rows = [row for one in (rollout, other) for row in rows_of(one)]
    write_rows(tmp_path / "rollouts.parquet", rows, THREAD_SCHEMA)
    assert rollouts_of(read_rows(tmp_path / "rollouts.parquet", THREAD_SCHEMA)) == [rollout, other]
