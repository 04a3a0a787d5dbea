"""Decoder layers by the kernels against those of `transformers`, on packed rows."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from apr.core.params import Model
from apr.training import layers
from apr.training.checkpoint import new_model
from apr.training.layers import bfloat16_units, use_kernels

SIZE = 40
CPU = torch.device("cpu")
LENGTHS = [33, 1, 16, 5, 47, 18]


def new(architecture: str = "qwen3", heads: int = 4, kv_heads: int = 2, d: int = 16):
    shape = {"hidden": heads * d, "heads": heads, "kv_heads": kv_heads, "ffn": 50}
    model = new_model(Model(architecture=architecture, layers=2, **shape), SIZE, 0, 64, 3, "packed")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():  # as if trained: norms are not 1, products not tiny
            scale = 0.3 if parameter.ndim == 1 else 0.1
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def row(lengths: list[int], rows: int = 1) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, SIZE, (rows, sum(lengths)), generator=torch.Generator().manual_seed(5))
    return {"input_ids": ids, "position_ids": torch.cat(list(map(torch.arange, lengths)))[None]}


def gradients(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the parameters, and the logits, of a loss that sees every logit."""
    logits = model(**batch, use_cache=False).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(6))
    (logits * weights).sum().backward()
    return {name: p.grad for name, p in model.named_parameters()} | {"logits": logits.detach()}


def error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest, as a part of what is wanted at most where that is more than 1."""
    assert found.keys() == wanted.keys()
    parts = [(found[name] - x).abs().max() / x.abs().max().clamp(min=1) for name, x in wanted.items()]
    return torch.stack(parts).max().item()


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("shape", [(4, 4, 32), (4, 2, 16), (4, 1, 16), (2, 2, 64), (3, 3, 48)])
def test_equals_the_layers_of_transformers(architecture, shape):
    model = new(architecture, *shape)
    wanted = gradients(copy.deepcopy(model), row(LENGTHS))
    assert use_kernels(model, CPU, torch.float32)
    assert error(gradients(model, row(LENGTHS)), wanted) < 1e-5


@pytest.mark.parametrize("lengths", [[1], [2, 1, 1], [64], [15, 17]])
def test_threads_of_any_length_in_several_rows(lengths):
    model = new()
    wanted = gradients(copy.deepcopy(model), row(lengths, rows=3))
    assert use_kernels(model, CPU, torch.float32)
    assert error(gradients(model, row(lengths, rows=3)), wanted) < 1e-5


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_bfloat16_differs_by_its_rounding(precision):
    """In both passes, or in the backward pass alone, which leaves the logits as they are."""
    model = new("qwen3", 4, 4, 32)
    wanted = gradients(copy.deepcopy(model), row(LENGTHS))
    assert use_kernels(model, CPU, precision, of_gradients=torch.bfloat16)
    found = gradients(model, row(LENGTHS))
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    logits = error({"": found.pop("logits")}, {"": wanted.pop("logits")})
    assert logits < 1e-5 if precision == torch.float32 else 1e-4 < logits < 3e-2
    assert 1e-4 < error(found, wanted) < 3e-2


@torch.no_grad()
def test_a_thread_does_not_reach_the_others():
    model, batch = new(), row(LENGTHS)
    use_kernels(model, CPU, torch.bfloat16)
    before = model(**batch, use_cache=False).logits[0]
    batch["input_ids"][0, 34:50] = (batch["input_ids"][0, 34:50] + 7) % SIZE
    after = model(**batch, use_cache=False).logits[0]
    assert torch.equal(before[:34], after[:34]) and torch.equal(before[50:], after[50:])
    assert (before[34:50] - after[34:50]).abs().amax(1).min() > 1e-3


@torch.no_grad()
def test_with_a_cache_a_model_goes_its_own_way():
    model, ids = new(), row([20])["input_ids"]
    whole = copy.deepcopy(model)(input_ids=ids, use_cache=False).logits
    model.set_attn_implementation("packed")
    assert use_kernels(model, CPU, torch.bfloat16)
    model.set_attn_implementation("sdpa")
    cache = DynamicCache(config=model.config)
    parts = [model(input_ids=part, past_key_values=cache).logits for part in ids.split(7, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_a_copy_has_weights_of_its_own():
    model = new()
    use_kernels(model, CPU, torch.float32)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    assert not torch.equal(model(**row([9])).logits, copied(**row([9])).logits)


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_norms_of_one_operation(kept):
    """As those of transformers, with gradients, in any precision of what they are given."""
    torch.manual_seed(0)
    model, given = new().model, torch.randn(3, 5, 64).to(kept)
    norms = model.norm, model.layers[0].self_attn.q_norm
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    expected, found = [], []
    for results in expected, found:
        for norm in norms:
            x = given[..., : len(norm.weight)].clone().requires_grad_()
            y = norm(x)
            gradients = torch.autograd.grad(y.float().square().sum(), [x, norm.weight])
            results += [y, *gradients]
        layers.fuse_norms(model)
    close = {"rtol": 1e-5, "atol": 1e-5} if kept == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **close)


def test_models_that_keep_their_own_layers(monkeypatch):
    assert not use_kernels(new(heads=4, kv_heads=4, d=8), CPU, torch.float32)
    assert not use_kernels(new(), torch.device("cuda"), torch.float32)  # where it is moved to
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=1, n_head=2))
    assert not use_kernels(gpt2, CPU, torch.float32)
    assert not use_kernels(new().bfloat16(), CPU, torch.float32)
    adapted = get_peft_model(new(), LoraConfig(target_modules="all-linear"))
    assert not use_kernels(adapted, CPU, torch.float32)
    assert not use_kernels(adapted.base_model.model, CPU, torch.float32)
    biased = new()
    biased.model.layers[1].self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(64))
    assert not use_kernels(biased, CPU, torch.float32)
    monkeypatch.setattr(layers, "_library", lambda precision: None)
    model = new()
    assert not use_kernels(model, CPU, torch.float32)
    assert "forward" not in vars(model.model.layers[0])


def test_the_processor_says_whether_it_has_units():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in lines if line.startswith(("flags", "Features"))).split()
    assert bfloat16_units() == bool({"avx512_bf16", "amx_bf16"} & set(flags))
