"""Decoding in C against plain passes of `transformers` in float64, and against itself, to the bit."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from apr.engine.interface import Sampling
from apr.engine.runners.native import NativeModel, groups_of
from apr.engine.scheduler import uniforms
from apr.engine.slots import SlotEngine

SHAPE = {"vocab_size": 57, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
         "initializer_range": 0.1, "pad_token_id": None, "eos_token_id": None}  # fmt: skip
KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
         "qwen3": (Qwen3Config, Qwen3ForCausalLM)}  # fmt: skip


def make_model(kind: str, **shape):
    torch.manual_seed(0)
    config, model_class = KINDS[kind]
    model = model_class(config(**SHAPE | shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which are all alike in a new model
                parameter += 0.3 * torch.randn_like(parameter)
    assert NativeModel.supports(model)
    return model


def decode(model, prompts, limits, window, slots=4, stop_ids=(), workers=1, group=8, steps=25) -> dict:
    """Threads that are extended by two tokens when they first stop, where there is room: their ids from the
    first one sampled, and log-probabilities, 0 where joined."""
    engine = SlotEngine(model, stop_ids, slots, window, workers)
    engine._runner.group, engine._runner.steps = group, steps
    found = {key: ([], []) for key in range(len(prompts))}
    joined = set()
    for key, prompt in enumerate(prompts):
        engine.open(key, prompt, Sampling(key % 3 / 2, 77 + key), limits[key])
    while engine.busy:
        for key, segment in engine.step():
            ids, logprobs = found[key]
            ids += segment.ids
            logprobs += segment.logprobs
            if key not in joined and len(prompts[key]) + len(ids) + 2 < limits[key]:
                joined.add(key)
                ids += [3, 4]
                logprobs += [0.0, 0.0]
                engine.extend(key, [3, 4], limits[key])
            else:
                engine.close(key)
    return found


def check(model, prompts, found) -> None:
    """Within 2e-5 of the same model in float64, each thread alone."""
    exact = copy.deepcopy(model).double()
    for key, (ids, logprobs) in found.items():
        whole = torch.tensor([prompts[key] + ids])
        with torch.no_grad():
            logits = exact(whole, use_cache=False).logits[0, len(prompts[key]) - 1 : -1]
        expected = torch.log_softmax(logits / (key % 3 / 2 or 1.0), -1)[range(len(ids)), ids].numpy()
        sampled = np.array(logprobs) != 0
        np.testing.assert_allclose(np.array(logprobs)[sampled], expected[sampled], rtol=0, atol=2e-5)


def draw_prompts(sizes, vocabulary=57) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(vocabulary, size=size).tolist() for size in sizes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads, groups, size, window", [
    (4, 2, 16, 45), (4, 1, 32, 64), (2, 1, 64, 50), (1, 1, 128, 33), (3, 3, 10, 47), (6, 3, 6, 41),
    (2, 2, 24, 48),
])  # fmt: skip
def test_log_probabilities_are_those_of_float64_for_every_shape_of_head(kind, heads, groups, size, window):
    shape = {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": size}
    shape |= {} if kind == "qwen3" or heads * size == 40 else {"hidden_size": heads * size}
    model = make_model(kind, **shape)
    prompts = draw_prompts([5, 1, 12, 3, 7])
    check(model, prompts, decode(model, prompts, [window, 20, window, window - 1, 30], window, 5, range(6)))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_more_rows_than_a_pass_has(kind):
    model = make_model(kind, tie_word_embeddings=True, vocab_size=33)
    prompts = draw_prompts([700, 2, 511, 1, 513, 30], 33)
    check(model, prompts, decode(model, prompts, [706, 6, 516, 4, 520, 40], 707, 6))


@pytest.mark.parametrize("inner, vocabulary", [(1, 1), (33, 31), (64, 64), (200, 97)])
def test_matrices_that_fill_no_panel(inner, vocabulary):
    model = make_model("llama", intermediate_size=inner, vocab_size=vocabulary)
    prompts = draw_prompts(range(1, 10), vocabulary)
    check(model, prompts, decode(model, prompts, [20] * 9, 20, 9))


@pytest.mark.parametrize("kind", KINDS)
def test_groups_slots_steps_and_workers_change_no_bit(kind):
    model = make_model(kind, head_dim=10)
    prompts = draw_prompts([int(size) for size in np.random.default_rng(2).integers(1, 60, 40)])
    limits = [size + 4 + size % 17 for size in map(len, prompts)]
    expected = decode(model, prompts, limits, 90, 1, range(3))
    assert len({len(ids) for ids, _ in expected.values()}) > 5
    for slots, workers, group, steps in [(40, 1, 40, 1), (40, 1, 8, 25), (40, 3, 5, 7), (11, 2, 3, 2),
                                         (7, 2, 7, 25)]:  # fmt: skip
        assert decode(model, prompts, limits, 90, slots, range(3), workers, group, steps) == expected


def test_all_workers_have_as_many_groups():
    assert [groups_of(count, 8, 1) for count in (1, 8, 9, 128)] == [1, 1, 2, 16]
    assert [groups_of(count, 8, 2) for count in (1, 2, 16, 17, 40, 128)] == [1, 2, 2, 4, 6, 16]
    assert [groups_of(count, 64, 3) for count in (2, 3, 192, 193)] == [2, 3, 3, 6]


def test_the_noise_is_that_of_the_scheduler_and_drawn_by_inverse_cdf():
    """All of 2^16 tokens are equally likely, so the one that is drawn has the first bits of the noise."""
    size = 1 << 16
    model = make_model("llama", vocab_size=size, hidden_size=16, num_hidden_layers=1)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    engine, keys = SlotEngine(model, [], 4, 100), [0, 1, 12345, (1 << 63) - 1]
    for key in keys:
        engine.open(key, [1, 2, 3], Sampling(0.5, key), 100)
    for key, segment in (stopped for _ in range(99) if engine.busy for stopped in engine.step()):
        noise = uniforms(np.full(97, key), np.arange(3, 100))
        assert segment.ids == np.floor(noise * size).astype(int).tolist()
        assert segment.logprobs == pytest.approx([-np.log(size)] * 97, abs=1e-12)
        keys.remove(key)
    assert not keys


@pytest.mark.parametrize("workers", [1, 2])
def test_one_thread_whose_logits_are_not_finite_is_an_error(workers):
    model = make_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.inf
    engine = SlotEngine(model, [], 20, 64, workers)
    for key, word in product(range(20), [5]):
        engine.open(key, [word, 7] if key == 11 else [word], Sampling(1.0, key), 64)
    with pytest.raises(FloatingPointError, match="not finite"):
        while engine.busy:
            engine.step()


def test_seconds_are_dealt_to_reading_and_decoding():
    model = make_model("llama")
    engine = SlotEngine(model, [], 1, 1024)
    engine._runner.steps = 1000
    engine.open(0, [5] * 900, Sampling(0.0, 0), 901)
    engine.step()
    assert engine.decode_seconds == 0 < engine.prefill_seconds
    engine.extend(0, [], 1000)
    read = engine.prefill_seconds
    engine.step()
    assert engine.prefill_seconds == read and engine.decode_seconds > 0
    engine.close(0)
    engine.open(0, [5] * 3, Sampling(0.0, 0), 1000)
    assert engine.step() and engine.decode_seconds > engine.prefill_seconds - read > 0


def test_a_call_of_large_models_is_a_step_of_large_groups():
    runner = NativeModel(make_model("llama", hidden_size=1024, intermediate_size=2048), 1, 8)
    assert (runner.group, runner.steps) == (64, 1)
    runner = NativeModel(make_model("llama"), 1, 8)
    assert (runner.group, runner.steps) == (8, 25)
