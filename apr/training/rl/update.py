"""Scores of packed rows: what an update's loss is made of."""

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from apr.training.rl.packing import NOT_SCORED

FEW_WORDS = 4096
"""Up to so many the logits of all tokens are made at once: on a CPU that takes a third of the time of TRL's
tiles of them, which are made again for the gradient, and 32,768 columns apart whatever the vocabulary."""


def score(
    model: torch.nn.Module, ids: torch.Tensor, positions: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Returns the log-probability of each token of rows (B, L), scored as one row without padding.

    0 where a thread begins, and where there is nothing to score. With attention "packed", threads are told
    apart by their positions.
    """
    real = positions != NOT_SCORED
    if not real.any():
        if not isinstance(model, (DistributedDataParallel, FSDPModule)):
            return torch.zeros(ids.shape, device=ids.device, requires_grad=True)
        positions = positions.clone()  # other processes have tokens, and wait for every one
        positions[0, 0], real = 0, real.clone()
        real[0, 0] = True
    tokens, places = ids[real], positions[real]
    labels = tokens.roll(-1).masked_fill(places.roll(-1) == 0, -100)
    scores = _next_scores(model, tokens[None], places[None], labels[None], temperature)
    # A score belongs to the next token.
    return scores.new_zeros(ids.shape).masked_scatter(real, scores.roll(1))


def mismatch(scores: torch.Tensor, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns how far the trainer's log-probabilities (B, C) of a batch are from the sampler's: the sum over
    tokens with loss of estimates of KL(sampler || trainer), and the largest difference."""
    gap = (scores - batch["old_per_token_logps"]) * batch["completion_mask"]
    return (gap.expm1() - gap).sum(), gap.abs().max()


def _next_scores(
    model: Any, tokens: torch.Tensor, places: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Returns (L): of each token of one row (1, L) the log-probability of its label, 0 where that is -100."""
    row = {"input_ids": tokens, "position_ids": places}
    config = getattr(model, "module", model).config
    if config.vocab_size > FEW_WORDS:
        # The temperature is that which TRL has told the model.
        return model(**row, shift_labels=labels, fused_lm_head=True).log_probs[0]
    logits = model(**row, use_cache=False).logits[0].float()
    return -cross_entropy(logits / temperature, labels[0], reduction="none")
