"""Causal attention inside each thread of a packed row, and nothing between threads.

Importing this module registers the attention implementation ``"packed"`` for any causal LM of
`transformers`: load the model with ``attn_implementation="packed"`` (`apr.training.checkpoint` does), or call
``model.set_attn_implementation("packed")``, and pass token ids (B, T) with `position_ids` (B, T) that start
again at 0 with every thread, no attention mask, and ``use_cache=False``:

    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits

Padding at a row's end is one more thread (positions 0, 1, 2, ...) whose output nobody reads. Without
restarts (position_ids left out) every row is one causal sequence, as with ``"sdpa"``. On a CPU a thread is a
call of its own; on a GPU all rows are one call of compiled flex attention, which skips what the mask hides in
blocks of `BLOCK` x `BLOCK` positions. It is compiled for a few sizes of a row, or for one (`one_size`).
"""

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

BLOCK = 128
SMALLEST_ROW = 4096
"""Rows are compiled for this many positions, and for 4, 16, ... times as many: with and without gradients, up
to 262,144 positions are as many kernels (8) as PyTorch compiles before it gives up and computes all T x T
scores. Padding is cheap, as each of its positions sees only itself."""
LARGEST_FIRST = 65536
"""Largest row that all smaller ones are padded to."""


def thread_lengths(position_ids: torch.Tensor) -> list[int]:
    """Lengths of the threads in (B, T) `position_ids`, row after row; they add up to B * T.

    Kept on the tensor, so that the layers of one forward pass share it. Raises `ValueError` if a row does
    not start at position 0.
    """
    lengths = getattr(position_ids, "thread_lengths", None)
    if lengths is None:
        _check_starts(position_ids)
        starts = (position_ids.flatten() == 0).nonzero().flatten().tolist()
        ends = [*starts[1:], position_ids.numel()]
        lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        position_ids.thread_lengths = lengths  # type: ignore[attr-defined]
    return lengths


def _check_starts(position_ids: torch.Tensor) -> None:
    if position_ids.is_cuda:  # without waiting for it
        torch._assert_async((position_ids[:, 0] == 0).all())
    elif position_ids[:, 0].any():
        raise ValueError("packed attention: every row of position_ids starts at 0")


def thread_mask(position_ids: torch.Tensor, size: int | None = None) -> BlockMask:
    """Hides from each position of (B, T) `position_ids` what is not before it in its own thread.

    With `size`, for rows of so many positions: those from T on are a thread each. Kept on the tensor, as the
    lengths are. Built from where threads start, without a (T, T) mask. Raises `ValueError` if a row does not
    start at position 0.
    """
    mask = getattr(position_ids, "thread_mask", None)
    if mask is None:
        _check_starts(position_ids)
        length = size or position_ids.shape[1]
        positions = pad(position_ids, (0, length - position_ids.shape[1]))
        starts = torch.arange(length, device=positions.device) - positions

        def visible(row: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
            return (key <= query) & (key >= starts[row, query])

        # The first query of a block sees furthest back, and every block from there to its own.
        first = starts[:, None, ::BLOCK] // BLOCK
        own = torch.arange(first.shape[2], device=first.device)
        keys = torch.minimum(first[..., None] + own, own[-1])
        mask = BlockMask.from_kv_blocks(
            (own + 1 - first).int(), keys.int(), BLOCK_SIZE=BLOCK, mask_mod=visible,
            seq_lengths=(length, length),
        )  # fmt: skip
        position_ids.thread_mask = mask  # type: ignore[attr-defined]
    return mask


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def one_size(model: torch.nn.Module, most: int) -> None:
    """Has rows of up to `most` positions be of one size in `model` where they are compiled; of those beyond
    `LARGEST_FIRST` not all, as padding takes memory."""
    for module in model.modules():
        module.smallest_row = -(-min(most, LARGEST_FIRST) // BLOCK) * BLOCK  # type: ignore[assignment]


def row_size(length: int, smallest: int) -> int:
    """Positions of the row that `length` positions are padded to."""
    size = smallest
    while size < length:
        size *= 4
    return size


def flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor,
    scaling: float | None, smallest: int,
) -> torch.Tensor:  # fmt: skip
    """As `packed_attention`, (B, T, H, D), by one call for all threads; on a CPU it is not compiled."""
    call = _compiled() if query.is_cuda else flex_attention
    length = query.shape[2]
    size = row_size(length, smallest)
    # Under autocast rotated queries and keys are float32, values are not.
    padded = (pad(x.to(value.dtype), (0, 0, 0, size - length)) for x in (query, key, value))
    output = call(
        *padded, block_mask=thread_mask(positions, size), scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip
    return output[:, :, :length].transpose(1, 2)


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

    Returns (B, T, H, D) and no weights. On a CPU a thread is a call of its own: that is faster than batches
    of threads padded to similar lengths, and than one call under a block-diagonal mask. On a GPU `flex` does
    it, which knows no dropout.
    """
    batch, heads, length, _ = query.shape
    if attention_mask is not None or key.shape[2] != length:
        raise ValueError("packed attention takes no attention mask and no KV cache (use_cache=False)")
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(f"packed attention knows no {name}")
    positions = kwargs["position_ids"]
    positions = positions if positions.shape[0] == batch else positions.expand(batch, -1)
    if query.is_cuda:
        if dropout:
            raise ValueError(f"packed attention: dropout {dropout} is not allowed on a GPU; allowed: 0")
        smallest = getattr(module, "smallest_row", SMALLEST_ROW)
        return flex(query, key, value, positions, scaling, smallest), None
    lengths = thread_lengths(positions)

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
