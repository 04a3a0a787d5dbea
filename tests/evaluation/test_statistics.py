"""Statistics against hand-computed values and brute force."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from apr.evaluation.statistics import (
    cons_at,
    interval,
    most_at,
    paired_difference,
    paired_ratio,
    pass_at,
    rank_correlation,
    solved_within,
    stop_at,
    vote_labels,
)

ANSWERS = [
    ["a", "b", "b", None],
    [None, None, None, None],
    ["a", "b", "c", "c"],
    ["b", None, "a", "b"],
]
RIGHT = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], bool)


def brute_vote(answers, right, chosen):
    votes = Counter(answers[i] for i in chosen if answers[i] is not None)
    if not votes:
        return False
    best = max(votes.values())
    winner = next(answers[i] for i in chosen if answers[i] is not None and votes[answers[i]] == best)
    return next(bool(right[i]) for i in chosen if answers[i] == winner)


def test_vote_labels():
    assert vote_labels(ANSWERS).tolist() == [[0, 1, 1, -1], [-1] * 4, [0, 1, 2, 2], [0, -1, 2, 0]]


def test_cons_by_hand():
    labels = vote_labels(ANSWERS)
    assert cons_at(1, labels, RIGHT).tolist() == [1 / 4, 0, 1 / 4, 1 / 4]
    # Pairs of problem 0: ab ab a- bb b- b-: ties go to the first sample, so 3 of 6 are right.
    assert cons_at(2, labels, RIGHT).tolist() == [3 / 6, 0, 3 / 6, 2 / 6]
    assert cons_at(4, labels, RIGHT).tolist() == [0, 0, 0, 0]


def test_consensus_that_stops_early_by_hand():
    """Orders of a problem begin with each of its samples in turn and go round."""
    labels = vote_labels(ANSWERS)
    solved, taken = stop_at(1, labels, RIGHT)
    assert taken.tolist() == [[1, 1, 1, 2], [4] * 4, [1] * 4, [1, 2, 1, 1]]
    assert solved.tolist() == [[1, 0, 0, 1], [0] * 4, [1, 0, 0, 0], [0, 1, 1, 0]]
    solved, taken = stop_at(2, labels, RIGHT)
    # abb-  bb-a  b-ab  -abb; none; abcc  bcca  ccab  cabc; b-ab  -abb  abb-  bb-a
    assert taken.tolist() == [[3, 2, 4, 4], [4] * 4, [4, 3, 2, 4], [4, 4, 3, 2]]
    assert not solved.any(), "two agree on b, on c, and on b; where they are right nobody agrees"
    few = vote_labels([["a", "b", None], ["a", "b", "c"]])
    solved, taken = stop_at(2, few, np.array([[0, 1, 0], [1, 0, 0]], bool))
    assert (taken == 3).all() and solved.tolist() == [[0, 1, 0], [1, 0, 0]], "the answer that came first"


def test_the_largest_of_n_samples_over_all_subsets():
    values = np.array([[3, 1, 4, 1], [2, 7, 1, 8]])
    for n in (1, 2, 3, 4):
        expected = [np.mean([max(subset) for subset in combinations(row, n)]) for row in values.tolist()]
        np.testing.assert_allclose(most_at(n, values), expected)


@pytest.mark.parametrize("n", range(1, 7))
def test_cons_is_the_mean_over_all_subsets(n):
    rng = np.random.default_rng(0)
    answers = [[(None, "a", "b", "c")[i] for i in row] for row in rng.integers(4, size=(30, 6))]
    right = np.array([[answer == "a" for answer in row] for row in answers])
    subsets = list(combinations(range(6), n))
    expected = [np.mean([brute_vote(a, r, s) for s in subsets]) for a, r in zip(answers, right, strict=True)]
    np.testing.assert_allclose(cons_at(n, vote_labels(answers), right), expected)


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_is_the_share_of_subsets_with_a_right_sample(n):
    right = np.random.default_rng(1).random((40, 6)) < 0.3
    subsets = list(combinations(range(6), n))
    expected = np.mean([right[:, subset].any(axis=1) for subset in subsets], axis=0)
    np.testing.assert_allclose(pass_at(n, right), expected)


def test_solved_within_a_window():
    right = np.array([[True, True], [False, True]])
    longest = np.array([[10, 20], [5, 11]])
    assert [solved_within(w, right, longest).tolist() for w in (9, 10, 11, 20)] == [
        [0, 0], [0.5, 0], [0.5, 0.5], [1, 0.5],
    ]  # fmt: skip


def test_interval_is_the_bootstrap():
    values = np.random.default_rng(2).random(50)
    rng = np.random.default_rng(7)
    means = [values[rng.integers(50, size=50)].mean() for _ in range(4000)]
    found = interval(values, 4000, seed=11)
    assert found.value == pytest.approx(values.mean())
    np.testing.assert_allclose(found[1:], np.percentile(means, (2.5, 97.5)), atol=0.01)
    assert interval(values, 4000, seed=11) == found != interval(values, 4000, seed=12)
    assert interval(np.ones(5), 100, 0) == (1, pytest.approx(1), pytest.approx(1))


def test_interval_covers_a_share_as_often_as_it_says():
    rng = np.random.default_rng(3)
    found = [interval(rng.random(100) < 0.4, 400, 0) for _ in range(400)]
    covered = np.mean([low <= 0.4 <= high for _, low, high in found])
    assert 0.90 <= covered <= 0.98


def test_paired_difference_is_narrower_than_an_unpaired_one():
    before = np.random.default_rng(4).random(200) < 0.5
    after = before.copy()
    after[np.flatnonzero(~before)[:10]] = True
    found = paired_difference(after, before, 2000, 0)
    assert found.value == pytest.approx(0.05)
    assert 0.015 < found.low < 0.03 < 0.07 < found.high < 0.09
    with pytest.raises(ValueError, match="not the same problems"):
        paired_difference(after, before[1:], 10, 0)


def test_paired_ratio_is_the_bootstrap():
    rng = np.random.default_rng(5)
    under = rng.random(80)
    over = under * rng.choice([0.5, 1.0], size=80)
    drawn = [rng.integers(80, size=80) for _ in range(4000)]
    ratios = [over[rows].mean() / under[rows].mean() for rows in drawn]
    found = paired_ratio(over, under, 4000, 0)
    assert found.value == pytest.approx(over.mean() / under.mean())
    np.testing.assert_allclose(found[1:], np.percentile(ratios, (2.5, 97.5)), atol=0.01)
    with pytest.raises(ValueError, match="not the same problems"):
        paired_ratio(over, under[1:], 10, 0)


def test_rank_correlation_is_spearman_in_every_resample():
    spearman = pytest.importorskip("scipy.stats").spearmanr
    rng = np.random.default_rng(6)
    asked = np.tile(np.arange(4), (30, 1))
    used = asked // 2 + rng.integers(3, size=asked.shape)
    counts = np.array([[[np.sum((a == i) & (u == j)) for j in range(4)] for i in range(4)]
                       for a, u in zip(asked, used, strict=True)])
    drawn = [rng.integers(30, size=30) for _ in range(2000)]
    found = rank_correlation(counts, 2000, 0)
    assert found.value == pytest.approx(spearman(asked.ravel(), used.ravel()).statistic)
    values = [spearman(asked[rows].ravel(), used[rows].ravel()).statistic for rows in drawn]
    np.testing.assert_allclose(found[1:], np.percentile(values, (2.5, 97.5)), atol=0.02)


@pytest.mark.parametrize("problems", [1, 3, 238, 245, 248, 1000])
@pytest.mark.parametrize("value", [0, 1, -1, 0.1])
def test_equal_values_have_an_interval_of_that_value(problems, value):
    assert interval(np.full(problems, value), 500, 0) == (pytest.approx(value, abs=1e-15), value, value)
