"""Which threads are seen, how they are packed, and their labels, by hand."""

from itertools import chain

import numpy as np
import pytest

from apr.core.errors import DataError
from apr.core.files import write_rows
from apr.training.sft.data import COLUMNS, RowCollator, Threads, pack_rows, read_threads


def thread(trace, index, role, ids, solved=False, sampled=None):
    mask = [bool(flag) for flag in sampled or [1] * len(ids)]
    return {
        "trace_id": trace,
        "thread": index,
        "role": role,
        "token_ids": ids,
        "loss_mask": mask,
        "solved": solved,
    }


def read(path, rows, share=0.0, seed=0, longest=10):
    write_rows(path, rows, COLUMNS)
    return read_threads(path, child_share=share, seed=seed, longest=longest, vocabulary_size=9)


def texts(threads: Threads) -> list[list[int]]:
    return [part.tolist() for part in np.split(threads.tokens, threads.starts[1:-1])]


def test_roots_and_solving_children_are_kept(tmp_path):
    rows = [
        thread("a", 0, "root", [1, 2, 3]),
        thread("a", 1, "child", [4, 5], solved=True, sampled=[0, 1]),
        thread("a", 2, "child", [6, 7, 8]),
    ]
    kept = read(tmp_path / "t.parquet", rows)
    assert texts(kept) == [[1, 2, 3], [4, 5]] and kept.loss.tolist() == [True, True, True, False, True]
    assert texts(read(tmp_path / "t.parquet", rows, share=1.0)) == [[1, 2, 3], [4, 5], [6, 7, 8]]


def test_the_share_of_other_children_does_not_depend_on_their_order(tmp_path):
    rows = [thread(f"t{i}", i % 3, "child", [i % 9, i // 9 % 9, i // 81]) for i in range(400)]
    kept = texts(read(tmp_path / "a.parquet", rows, share=0.4))
    turned = texts(read(tmp_path / "b.parquet", rows[::-1], share=0.4))
    assert kept == turned[::-1] and 120 < len(kept) < 200
    assert kept != texts(read(tmp_path / "a.parquet", rows, share=0.4, seed=1))


@pytest.mark.parametrize(
    "row, message",
    [
        (thread("x", 0, "root", [1] * 11), r"row 0 \(trace x, thread 0\) has 11 tokens.*at most 10"),
        (thread("x", 0, "root", [1, 2], sampled=[1]), "has 2 tokens, 1 of them with a loss mask"),
        (thread("x", 0, "root", [1, 9]), r"token ids outside the tokenizer's 0\.\.8"),
        (thread("x", 0, "child", [1, 2]), "no threads to train on"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "t.parquet", [row])


def test_bad_files(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match="no such file"):
        read_threads(path, child_share=0, seed=0, longest=9, vocabulary_size=9)
    write_rows(path, [thread("x", 0, "root", [1])], COLUMNS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_threads(path, child_share=0, seed=0, longest=9, vocabulary_size=9)


def test_rows_are_full_and_epochs_complete():
    lengths = np.random.default_rng(0).integers(5, 60, 500)
    rows = pack_rows(lengths, 400, 3 * int(lengths.sum()), seed=1)
    used = [int(lengths[row].sum()) for row in rows]
    assert max(used) <= 400 and np.mean(used) > 0.98 * 400
    assert 3 * lengths.sum() <= sum(used) < 3 * lengths.sum() + 400
    seen = np.bincount(list(chain(*rows)), minlength=500)
    assert seen.min() >= 1 and seen.max() <= 4 and np.mean(seen == 3) > 0.5
    assert rows == pack_rows(lengths, 400, 3 * int(lengths.sum()), seed=1)
    assert rows != pack_rows(lengths, 400, 3 * int(lengths.sum()), seed=2)


def test_packing_by_hand():
    """Seven equal threads, two to a row: three rows hold the six tokens asked for."""
    rows = pack_rows([1] * 7, 2, 6, seed=0)
    assert [len(row) for row in rows] == [2, 2, 2] and len(set(chain(*rows))) == 6


def test_labels_by_hand():
    threads = Threads(
        tokens=np.array([1, 2, 3, 4, 5, 6, 7, 8]),
        loss=np.array([0, 0, 1, 0, 1, 1, 0, 1], dtype=bool),  # [1 2 3 4 5], [6 7 8]
        starts=np.array([0, 5, 8]),
    )
    batch = RowCollator(threads)([{"threads": [1, 0]}])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[6, 7, 8, 1, 2, 3, 4, 5]],
        "position_ids": [[0, 1, 2, 0, 1, 2, 3, 4]],
        "shift_labels": [[-100, 8, -100, -100, 3, -100, 5, -100]],
    }
