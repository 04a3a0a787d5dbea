"""Packed attention against each thread on its own."""

import pytest
import torch

from apr.core.params import Model
from apr.engine.checkpoint import new_model
from apr.engine.packed import thread_lengths

LENGTHS = [5, 1, 17, 9]
SIZE = 40


def tiny(attention: str, kv_heads: int = 2):
    shape = Model(layers=2, hidden=32, heads=4, kv_heads=kv_heads, ffn=48)
    return new_model(shape, SIZE, 0, 64, 3, attention)


def packed_positions(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


def random_ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, SIZE, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(seed))


def logits(model, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, position_ids=positions, use_cache=False).logits


def test_lengths_by_hand():
    assert thread_lengths(torch.tensor([[0, 1, 0, 0, 1, 2], [0, 1, 2, 3, 0, 1]])) == [2, 1, 3, 4, 2]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_equals_each_thread_alone_with_gradients(kv_heads):
    ids, weights = random_ids(), torch.randn(sum(LENGTHS), SIZE, generator=torch.Generator().manual_seed(1))
    packed, alone = tiny("packed", kv_heads), tiny("eager", kv_heads)
    row = logits(packed, ids, packed_positions(LENGTHS))[0]
    threads = torch.cat([alone(part, use_cache=False).logits[0] for part in ids.split(LENGTHS, 1)])
    torch.testing.assert_close(row, threads, atol=1e-5, rtol=0)
    (row * weights).sum().backward()
    (threads * weights).sum().backward()
    for (name, a), b in zip(packed.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5, msg=name)


@torch.no_grad()
def test_a_thread_does_not_reach_the_others():
    model, positions = tiny("packed"), packed_positions(LENGTHS)
    before = random_ids()
    after = before.clone()
    after[0, 6:23] = (after[0, 6:23] + 7) % SIZE
    a, b = logits(model, before, positions)[0], logits(model, after, positions)[0]
    assert torch.equal(a[:6], b[:6]) and torch.equal(a[23:], b[23:])
    assert (a[6:23] - b[6:23]).abs().amax(1).min() > 1e-3


@torch.no_grad()
def test_rows_of_a_batch():
    model, ids = tiny("packed"), torch.cat([random_ids(0), random_ids(1)])
    positions = torch.cat([packed_positions(LENGTHS), packed_positions([20, 12])])
    both = logits(model, ids, positions)
    for row in range(2):
        one = logits(model, ids[row : row + 1], positions[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], one, atol=1e-6, rtol=0)


@torch.no_grad()
def test_without_positions_a_row_is_one_thread():
    ids = torch.cat([random_ids(0), random_ids(1)])
    torch.testing.assert_close(
        tiny("packed")(ids, use_cache=False).logits, tiny("sdpa")(ids, use_cache=False).logits
    )


def test_refuses_what_it_would_get_wrong():
    model, ids = tiny("packed"), random_ids()
    with pytest.raises(ValueError, match="starts at 0"):
        logits(model, ids, packed_positions(LENGTHS) + 1)
    with pytest.raises(ValueError, match="no attention mask"):
        mask = torch.ones(1, 1, ids.shape[1], ids.shape[1])
        model(ids, attention_mask=mask, position_ids=packed_positions(LENGTHS), use_cache=False)
