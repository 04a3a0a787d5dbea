"""Packed attention against each thread on its own."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_block_mask

from apr.core.params import Model
from apr.training import attention
from apr.training.attention import BLOCK, flex, packed_attention, thread_lengths, thread_mask
from apr.training.checkpoint import new_model

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
    together, alone = tiny("packed", kv_heads), tiny("eager", kv_heads)
    row = logits(together, ids, packed_positions(LENGTHS))[0]
    threads = torch.cat([alone(part, use_cache=False).logits[0] for part in ids.split(LENGTHS, 1)])
    torch.testing.assert_close(row, threads, atol=1e-5, rtol=0)
    (row * weights).sum().backward()
    (threads * weights).sum().backward()
    for (name, a), b in zip(together.named_parameters(), alone.parameters(), strict=True):
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


LONG = [[300, 1, 127, 128, 44], [5, 595]]
"""Two rows of 600: threads within a block, over several, and that end with one."""


def long_positions() -> torch.Tensor:
    return torch.cat([packed_positions(lengths) for lengths in LONG])


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_flex_equals_thread_by_thread_with_gradients(kv_heads, monkeypatch):
    # PyTorch refuses gradients on a CPU, although its formula for them is the same on every device.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    generator = torch.Generator().manual_seed(4)
    shapes = [(2, 4, 600, 16), (2, kv_heads, 600, 16), (2, kv_heads, 600, 16)]
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    weights = torch.randn(2, 600, 4, 16, generator=generator)
    one = flex(*inputs, long_positions(), 0.3, 640)
    other, _ = packed_attention(torch.nn.Module(), *inputs, None, 0.3, position_ids=long_positions())
    torch.testing.assert_close(one, other, atol=2e-6, rtol=0)
    grads = [torch.autograd.grad((output * weights).sum(), inputs) for output in (one, other)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_blocks_that_flex_computes_are_those_with_something_to_see():
    positions = long_positions()
    mask = thread_mask(positions)
    threads = (positions == 0).cumsum(1)

    def visible(row, head, query, key):
        return (threads[row, query] == threads[row, key]) & (key <= query)

    expected = create_block_mask(visible, 2, None, 600, 600, device="cpu", BLOCK_SIZE=BLOCK)
    assert torch.equal(mask.to_dense(), expected.to_dense())
    assert mask.to_dense()[0, 0].tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1],
    ]  # fmt: skip
    at = torch.arange(600)
    assert torch.equal(*(m(0, 0, at[:, None], at[None]) for m in (mask.mask_mod, visible)))


def test_padding_of_a_row_sees_only_itself():
    mask = thread_mask(long_positions(), 768)
    assert mask.to_dense()[1, 0, 4:].tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]]
    at = torch.arange(768)
    assert torch.equal(mask.mask_mod(1, 0, at[:, None], at[None])[600:], torch.eye(768).bool()[600:])


def test_flex_is_compiled_once_for_all_rows_of_a_size(monkeypatch):
    counter = CompileCounter()
    compiled = torch.compile(flex_attention.flex_attention, dynamic=False, backend=counter)
    monkeypatch.setattr(attention, "flex_attention", compiled)
    for lengths in [5, 7], [100, 1, 27], [300, 44], [129]:
        positions = packed_positions(lengths)
        inputs = torch.randn(3, 1, 2, sum(lengths), 16)
        other, _ = packed_attention(torch.nn.Module(), *inputs, None, 0.3, position_ids=positions)
        torch.testing.assert_close(flex(*inputs, positions, 0.3, 128), other, atol=2e-6, rtol=0)
    assert counter.frame_count == 2


def test_rows_have_few_sizes():
    sizes = [attention.row_size(length, 4096) for length in (1, 4096, 4097, 65536)]
    assert sizes == [4096, 4096, 16384, 65536]


@pytest.mark.parametrize("most, size", [(1000, 1024), (1024, 1024), (10**6, 65536)])
def test_a_stage_has_one_size_of_rows(most, size):
    model = tiny("packed")
    attention.one_size(model, most)
    for layer in model.model.layers:
        assert attention.row_size(min(most, 60_000), layer.self_attn.smallest_row) == size


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_model_by_flex_and_thread_by_thread(precision, monkeypatch):
    """Under autocast, which leaves queries and keys in float32, too."""

    def loss(model):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            return logits(model, random_ids(), packed_positions(LENGTHS)).float().square().mean()

    def by_flex(module, query, key, value, mask, scaling=None, dropout=0.0, **kwargs):
        assert value.dtype == precision
        return flex(query, key, value, kwargs["position_ids"], scaling, 640), None

    one = loss(tiny("packed"))
    monkeypatch.setitem(attention.AttentionInterface._global_mapping, "packed", by_flex)
    other = loss(tiny("packed"))
    torch.testing.assert_close(one, other, rtol=1e-5 if precision == torch.float32 else 1e-2, atol=0)
