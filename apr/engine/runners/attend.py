"""Attention of a decoding step, as a Triton kernel; None without Triton, which comes with GPUs."""

from types import SimpleNamespace
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:
    triton, tl = None, SimpleNamespace(constexpr=None)


def jit(kernel: Any) -> Any:
    return triton and triton.jit(kernel)


@jit
def attend(
    projected, bias, norms, cosine, sine, positions, slots, writes, keys, values, attended,
    epsilon, scale, room, biased: tl.constexpr, normed: tl.constexpr, heads: tl.constexpr,
    groups: tl.constexpr, d: tl.constexpr, shared: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Of one thread, and the heads that share its keys: norms, rotary embedding, the cache, attention.

    `projected` has queries, keys and values; `shared` is the number of those heads or the next power of two.
    """
    row, group, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, d)
    turned = (i + d // 2) % d
    at, start = tl.load(positions + row), (tl.load(slots + row) * groups + group) * room
    head = heads + group
    row_of = projected + row * (heads + 2 * groups) * d
    key, key_turned = tl.load(row_of + head * d + i), tl.load(row_of + head * d + turned)
    value = tl.load(row_of + (head + groups) * d + i)
    share = heads // groups
    query_heads = group * share + tl.arange(0, shared)
    there = (tl.arange(0, shared) < share)[:, None]
    of_query, of_turned = query_heads[:, None] * d + i[None, :], query_heads[:, None] * d + turned[None, :]
    query = tl.load(row_of + of_query, mask=there, other=0.0)
    query_turned = tl.load(row_of + of_turned, mask=there, other=0.0)
    if biased:
        key += tl.load(bias + head * d + i)
        key_turned += tl.load(bias + head * d + turned)
        value += tl.load(bias + (head + groups) * d + i)
        query += tl.load(bias + of_query, mask=there, other=0.0)
        query_turned += tl.load(bias + of_turned, mask=there, other=0.0)
    if normed:
        inverse = tl.rsqrt(tl.sum(query * query, 1) / d + epsilon)[:, None]
        query *= inverse * tl.load(norms + i)[None, :]
        query_turned *= inverse * tl.load(norms + turned)[None, :]
        inverse = tl.rsqrt(tl.sum(key * key, 0) / d + epsilon)
        key *= inverse * tl.load(norms + d + i)
        key_turned *= inverse * tl.load(norms + d + turned)
    cos, sin = tl.load(cosine + at * d + i), tl.load(sine + at * d + i)
    key = key * cos + key_turned * sin
    query = (query * cos[None, :] + query_turned * sin[None, :]) * scale
    to = (start + tl.load(writes + row)) * d + i
    tl.store(keys + to, key)
    tl.store(values + to, value)
    most = tl.sum(query * key[None, :], 1)
    total = tl.full([shared], 1.0, tl.float32)
    result = tl.zeros([shared, d], tl.float32) + value[None, :]
    for first in range(0, at, block):
        place = first + tl.arange(0, block)
        seen = place < at
        of_place = (start + place)[:, None] * d + i[None, :]
        past = tl.load(keys + of_place, mask=seen[:, None], other=0.0)
        scores = tl.sum(query[:, None, :] * past[None, :, :], 2)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, 1))
        shares, kept = tl.exp(scores - larger[:, None]), tl.exp(most - larger)
        past = tl.load(values + of_place, mask=seen[:, None], other=0.0)
        total = total * kept + tl.sum(shares, 1)
        result = result * kept[:, None] + tl.sum(shares[:, :, None] * past[None, :, :], 1)
        most = larger
    tl.store(attended + row * heads * d + of_query, result / total[:, None], mask=there)
