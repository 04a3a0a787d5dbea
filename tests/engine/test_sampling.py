import numpy as np
import pytest
import torch

from apr.engine.sampling import sample
from apr.engine.scheduler import uniforms

MASK = (1 << 64) - 1


def splitmix64(key: int, position: int) -> float:
    """The reference algorithm (Steele, Lea, Flood 2014) in Python integers."""
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)


def test_uniforms_are_splitmix64():
    keys = [0, 1, 12345, (1 << 63) - 1]
    positions = [0, 3, 255, 4095]
    got = uniforms(np.array(keys), np.array(positions))
    assert got.tolist() == [splitmix64(k, p) for k, p in zip(keys, positions, strict=True)]
    many = uniforms(np.full(100_000, 7), np.arange(100_000))
    assert abs(many.mean() - 0.5) < 0.005 and many.min() >= 0 and many.max() < 1


def test_inverse_cdf_by_hand():
    logits = torch.log(torch.tensor([[0.2, 0.0, 0.5, 0.3]] * 6))
    noise = np.array([0.0, 0.19, 0.21, 0.69, 0.71, 0.999])
    tokens, logprobs = sample(logits, np.ones(6), noise)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    assert logprobs == pytest.approx(np.log([0.2, 0.2, 0.5, 0.5, 0.3, 0.3]), abs=1e-6)


def test_temperature_scales_and_zero_is_greedy_with_logprobs_at_one():
    logits = torch.log(torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.2, 0.8]]))
    tokens, logprobs = sample(logits, np.array([0.5, 0.0, 1.0]), np.array([0.05, 0.05, 0.05]))
    assert tokens.tolist() == [0, 1, 0]  # at 0.5 the probabilities are 1/17 and 16/17
    assert np.exp(logprobs) == pytest.approx([1 / 17, 0.8, 0.2], abs=1e-6)
    tokens, logprobs = sample(logits, np.zeros(3), np.zeros(3))
    assert tokens.tolist() == [1, 1, 1] and np.exp(logprobs) == pytest.approx(0.8, abs=1e-6)


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(FloatingPointError):
        sample(torch.tensor([[0.0, float("nan")]]), np.ones(1), np.array([0.5]))
