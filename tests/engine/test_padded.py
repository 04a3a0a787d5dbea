from apr.engine.runners.padded import length_spans


def test_spans_are_cut_where_padding_passes_the_slack():
    assert length_spans([10, 9, 8, 2, 2], slack=3, most=99) == [(0, 3), (3, 5)]
    assert length_spans([2, 2, 10], slack=3, most=99) == [(0, 2), (2, 3)]
    assert length_spans([4, 4, 4, 4], slack=9, most=8) == [(0, 2), (2, 4)]
    assert length_spans([20], slack=0, most=8) == [(0, 1)]
    assert length_spans([], slack=3, most=8) == []
