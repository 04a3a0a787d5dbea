"""Scores of packed rows: what an update's loss is made of."""

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from apr.training.rl.packing import NOT_SCORED


def score(model: torch.nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
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
    output = model(
        input_ids=tokens[None], position_ids=places[None], shift_labels=labels[None], fused_lm_head=True
    )
    # A score belongs to the next token.
    return output.log_probs.new_zeros(ids.shape).masked_scatter(real, output.log_probs[0].roll(1))
