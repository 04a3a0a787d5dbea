"""Pure functions from arrays of (problems, samples) to values per problem, and their means with intervals.

Every statistic of the paper is a mean over problems of something that each problem's samples decide. The
bootstrap resamples problems; all statistics of one number of problems share the same resamples.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean over problems and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@lru_cache(maxsize=8)
def _weights(problems: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, problems): the share of each problem in each resample."""
    drawn = np.random.default_rng(seed).integers(problems, size=(resamples, problems))
    rows = np.arange(resamples)[:, None] * problems
    counts = np.bincount((drawn + rows).ravel(), minlength=resamples * problems)
    return counts.reshape(resamples, problems) / problems


def interval(values: np.ndarray, resamples: int, seed: int) -> Interval:
    """Mean of `values` (problems,) with its percentile bootstrap interval."""
    means = _weights(len(values), resamples, seed) @ values.astype(float)
    # Clipped, as sums of shares are rounded: of values that are all 1 no mean is more.
    low, high = np.percentile(means, (2.5, 97.5)).clip(values.min(), values.max())
    return Interval(float(np.mean(values)), float(low), float(high))


def paired_difference(after: np.ndarray, before: np.ndarray, resamples: int, seed: int) -> Interval:
    """Mean of after - before over the same problems, both (problems,) in one order."""
    if after.shape != before.shape:
        raise ValueError(f"not the same problems: {after.shape} and {before.shape}")
    return interval(after.astype(float) - before, resamples, seed)


def paired_ratio(over: np.ndarray, under: np.ndarray, resamples: int, seed: int) -> Interval:
    """Mean of `over` divided by that of `under`, both (problems,) in one order; vast over nothing."""
    if over.shape != under.shape:
        raise ValueError(f"not the same problems: {over.shape} and {under.shape}")
    means = np.stack((over, under)).astype(float)
    drawn = means @ _weights(len(over), resamples, seed).T
    low, high = np.percentile(drawn[0] / np.maximum(drawn[1], 1e-12), (2.5, 97.5))
    value = means[0].mean() / max(means[1].mean(), 1e-12)
    return Interval(float(value), float(low), float(high))


def rank_correlation(counts: np.ndarray, resamples: int, seed: int) -> Interval:
    """Spearman's rank correlation, ties sharing their mean rank; 0 if either side never varies.

    `counts` (problems, values, values): how many of a problem's pairs have the one and the other value, both
    in ascending order. Ranks are taken anew in each resample of problems.
    """
    drawn = np.tensordot(_weights(len(counts), resamples, seed), counts, 1)
    pairs = np.concatenate((counts.mean(axis=0)[None], drawn))
    pairs /= pairs.sum(axis=(1, 2), keepdims=True)
    one, other = pairs.sum(axis=2), pairs.sum(axis=1)
    ranks, others = (shares.cumsum(axis=1) - shares / 2 - 0.5 for shares in (one, other))
    covariance = np.einsum("rij,ri,rj->r", pairs, ranks, others)
    scale = np.sqrt((one * ranks**2).sum(axis=1) * (other * others**2).sum(axis=1))
    found = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 1e-12)
    low, high = np.percentile(found[1:], (2.5, 97.5))
    return Interval(float(found[0]), float(low), float(high))


def vote_labels(answers: Sequence[Sequence[str | None]]) -> np.ndarray:
    """(problems, samples) int: equal answers of a problem share a label; -1 where there is no vote."""
    return np.array([[-1 if answer is None else row.index(answer) for answer in row]
                     for row in map(list, answers)])


def cons_at(n: int, labels: np.ndarray, right: np.ndarray) -> np.ndarray:
    """cons@n per problem: the share of the n-subsets of samples whose majority vote is right.

    Samples without a vote (they declare no solution, or are malformed or truncated) are left out; ties go
    to the answer that came first; without any vote the problem is not solved. The mean over all subsets is
    unbiased for n fresh samples, like `pass_at`; its cost is a binomial, so it is meant for <= 16 samples.
    """
    total = np.zeros(len(labels))
    subsets = list(combinations(range(labels.shape[1]), n))
    for subset in subsets:
        chosen = labels[:, subset]
        votes = (chosen[:, :, None] == chosen[:, None, :]).sum(axis=2)
        votes[chosen < 0] = 0
        winner = votes.argmax(axis=1)[:, None]
        voted = np.take_along_axis(votes, winner, axis=1)[:, 0] > 0
        total += voted & np.take_along_axis(right[:, subset], winner, axis=1)[:, 0]
    return total / len(subsets)


def stop_at(agree: int, labels: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Consensus that stops early: samples one after another until so many `agree`, by problem and order.

    Returns whether the answer is right, and how many samples it took, both (problems, samples): order i
    begins with sample i and goes round. Where no answer gets so many votes all samples are taken, and the
    most votes decide as in `cons_at`.
    """
    solved, taken = np.zeros(labels.shape, bool), np.full(labels.shape, labels.shape[1])
    for problem, first in np.ndindex(labels.shape):
        votes = Counter[int]()
        for count, label in enumerate(np.roll(labels[problem], -first).tolist(), start=1):
            votes[label] += label >= 0
            if votes[label] == agree:
                taken[problem, first] = count
                break
        winner, most = votes.most_common(1)[0]
        solved[problem, first] = most > 0 and right[problem, labels[problem] == winner].any()
    return solved, taken


def most_at(n: int, values: np.ndarray) -> np.ndarray:
    """The largest of n samples per problem, as a mean over all n-subsets of `values` (problems, samples)."""
    samples = values.shape[1]
    share = [comb(place, n - 1) / comb(samples, n) for place in range(samples)]
    return np.sort(values, axis=1) @ np.array(share)


def pass_at(n: int, right: np.ndarray) -> np.ndarray:
    """pass@n per problem from all m samples, unbiased: 1 - C(m - c, n) / C(m, n), c of them right."""
    samples = right.shape[1]
    miss = np.array([comb(samples - c, n) / comb(samples, n) for c in range(samples + 1)])
    return 1 - miss[right.sum(axis=1)]


def solved_within(window: int, right: np.ndarray, longest: np.ndarray) -> np.ndarray:
    """Share of a problem's samples that are right and whose longest thread fits `window` tokens (Fig 4b)."""
    return (right & (longest <= window)).mean(axis=1)
