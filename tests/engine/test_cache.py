import numpy as np

from apr.engine.cache import arrange, length_spans


def test_spans_are_cut_where_padding_passes_the_slack():
    assert length_spans([10, 9, 8, 2, 2], slack=3) == [(0, 3, 10), (3, 5, 2)]
    assert length_spans([2, 2, 10], slack=3) == [(0, 2, 2), (2, 3, 10)]
    assert length_spans([4, 4, 4, 4], slack=9, most=8) == [(0, 2, 4), (2, 4, 4)]
    assert length_spans([20], slack=0, most=8) == [(0, 1, 20)]
    assert length_spans([], slack=3) == []


def test_compaction_moves_only_what_lies_outside():
    assert arrange(np.array([0, 3, 5, 1]), np.array([4, 9, 7, 2]), group=4).tolist() == [0, 3, 2, 1]


def test_ordering_by_length_in_groups():
    # by length: slots 5, 0 | 1, 4; slot 0 is already in the first group, slots 1, 4 and 5 are not in theirs
    targets = arrange(np.array([0, 1, 4, 5]), np.array([8, 7, 3, 9]), group=2)
    assert targets.tolist() == [0, 2, 3, 1]
