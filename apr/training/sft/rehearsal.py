"""Whether a model of any family can be trained here, found out before the first step: by trying."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from apr.core.errors import CheckpointError
from apr.core.model_files import first_line
from apr.engine.interface import Sampling
from apr.engine.slots import SlotEngine

TOLERANCE = 5e-4
"""As a part of the largest logit: of rounding 1e-6 is seen, of a wrong attention 2e-3 and more."""
DECODED = 4
"""Tokens that are decoded, so that the cache is read."""


def rehearse(model: PreTrainedModel, base: Path, window: int) -> None:
    """Raises `CheckpointError` unless all that follows works with `model`, read from `base`.

    Its settings are saved; `SlotEngine` decodes it as far as `window` tokens; and a packed row of two threads
    is to it what each is alone under its own attention.
    """
    try:
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder, state_dict={})
        error = _packing_error(model, window)
        reason = f"packed attention changes its logits by {error:.1g}"
    except Exception as fault:  # a model of another family may fail in any way
        error, reason = torch.inf, first_line(fault)
    if error > TOLERANCE:
        raise CheckpointError(
            f"{base}: a model of type {model.config.model_type!r} is not allowed ({reason}); allowed: causal "
            "LMs with full attention by position and finite weights, such as llama, qwen3, mistral, gpt2"
        )


@torch.no_grad()
def _packing_error(model: PreTrainedModel, window: int) -> float:
    """Returns how far log-probabilities of the engine and packed logits are from those of the model alone, as
    a part of the largest; of a thread the median, as rounding sends some tokens to other experts."""
    prompt = (torch.arange(window - DECODED) * 7919 % model.config.get_text_config().vocab_size).tolist()
    engine = SlotEngine(model, [], 1, window)
    engine.open("thread", prompt, Sampling(0.0, 0), window)
    segments: list[Any] = []
    while engine.busy:
        segments += engine.step()
    ((_, decoded),) = segments
    thread = torch.tensor([prompt + decoded.ids])
    ids = torch.cat([thread, thread.flip(1)])
    positions = torch.arange(window).repeat(2)[None]
    packed = model(input_ids=ids.view(1, -1), position_ids=positions, use_cache=False).logits
    model.set_attn_implementation("eager")
    alone = torch.cat([model(input_ids=row[None], use_cache=False).logits for row in ids])
    model.set_attn_implementation("packed")
    scores = alone[0, -DECODED - 1 : -1].log_softmax(-1)[range(DECODED), decoded.ids]
    errors = (packed.view_as(alone) - alone).abs().amax(2).median(1).values
    largest = torch.stack([*errors, (scores - torch.tensor(decoded.logprobs)).abs().max()]).max()
    return (largest / alone.abs().max()).nan_to_num(torch.inf).item()
