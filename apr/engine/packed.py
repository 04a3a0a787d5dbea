"""Causal attention inside each thread of a packed row, and nothing between threads.

Importing this module registers the attention implementation ``"packed"`` for any causal LM of
`transformers`: load the model with ``attn_implementation="packed"`` (`apr.engine.checkpoint` does), or call
``model.set_attn_implementation("packed")``, and pass token ids (B, T) with `position_ids` (B, T) that start
again at 0 with every thread, no attention mask, and ``use_cache=False``:

    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits

Padding at a row's end is one more thread (positions 0, 1, 2, ...) whose output nobody reads. Without
restarts (position_ids left out) every row is one causal sequence, as with ``"sdpa"``.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface


def thread_lengths(position_ids: torch.Tensor) -> list[int]:
    """Lengths of the threads in (B, T) `position_ids`, row after row; they add up to B * T.

    Kept on the tensor, so that the layers of one forward pass share it. Raises `ValueError` if a row does
    not start at position 0.
    """
    lengths = getattr(position_ids, "thread_lengths", None)
    if lengths is None:
        if position_ids[:, 0].any():
            raise ValueError("packed attention: every row of position_ids starts at 0")
        starts = (position_ids.flatten() == 0).nonzero().flatten().tolist()
        ends = [*starts[1:], position_ids.numel()]
        lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        position_ids.thread_lengths = lengths  # type: ignore[attr-defined]
    return lengths


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of `query` (B, H, T, D) over `key`, `value` (B, H or fewer, T, D), thread by thread.

    Returns (B, T, H, D) and no weights. A thread is a call of its own: on a CPU that is faster than batches
    of threads padded to similar lengths, and than one call under a block-diagonal mask.
    """
    batch, heads, length, _ = query.shape
    if attention_mask is not None or key.shape[2] != length:
        raise ValueError("packed attention takes no attention mask and no KV cache (use_cache=False)")
    positions = kwargs["position_ids"]
    lengths = thread_lengths(positions if positions.shape[0] == batch else positions.expand(batch, -1))

    def by_thread(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.transpose(1, 2).reshape(1, batch * length, x.shape[1], -1).transpose(1, 2).split(lengths, 2)

    outputs = [
        scaled_dot_product_attention(
            *thread, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=key.shape[1] != heads
        )
        for thread in zip(by_thread(query), by_thread(key), by_thread(value), strict=True)
    ]
    return torch.cat(outputs, 2).transpose(1, 2).reshape(batch, length, heads, -1), None


AttentionInterface.register("packed", packed_attention)
