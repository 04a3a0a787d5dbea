"""Sampling over a batch: a draw by inverse CDF for each row, with noise that is given."""

import numpy as np
import torch
from numpy import ndarray as Array

NOT_FINITE = "the model's logits are not finite"


def sample(logits: torch.Tensor, temperatures: Array, noise: Array) -> tuple[Array, Array]:
    """Token ids and their log-probabilities, both (n,), drawn from `logits` (n, vocabulary).

    Row i is drawn at `temperatures[i]` by inverse CDF at `noise[i]`; temperature 0 takes the most likely
    token, and its log-probability at temperature 1. Raises `FloatingPointError` on logits that are not
    finite: the weights have diverged.
    """
    greedy = temperatures == 0
    if greedy.all():
        logits = logits.double()
        tokens = logits.argmax(-1)
        chosen = torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0]
    else:
        at, by = (torch.from_numpy(array).to(logits.device) for array in (temperatures, noise))
        tokens, chosen = draw(logits, at, by, mixed=bool(greedy.any()))
    return tokens.cpu().numpy(), finite(chosen.cpu().numpy())


def draw(
    logits: torch.Tensor, temperatures: torch.Tensor, noise: torch.Tensor, mixed: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `sample`, on the device of `logits` and without a look at any value; `mixed`: some rows are at 0."""
    logits = logits.double()
    greedy = temperatures == 0
    logprobs = torch.log_softmax(logits / torch.where(greedy, 1.0, temperatures)[:, None], -1)
    cumulative = logprobs.exp().cumsum(-1)
    threshold = noise[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=logits.shape[1] - 1)
    if mixed:
        tokens = torch.where(greedy[:, None], logits.argmax(-1, keepdim=True), tokens)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]


def finite(logprobs: Array) -> Array:
    """`logprobs`. Raises `FloatingPointError` unless all of them are finite."""
    if not np.isfinite(logprobs).all():
        raise FloatingPointError(NOT_FINITE)
    return logprobs
