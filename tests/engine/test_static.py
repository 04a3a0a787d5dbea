"""Passes of fixed shapes, replayed from tapes, against passes that are launched as they come."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import apr.engine.slots
from apr.engine.interface import Sampling
from apr.engine.runners import graphs, llama, static
from apr.engine.runners.padded import PaddedModel
from apr.engine.runners.static import StaticModel, reach_bucket, row_bucket
from apr.engine.scheduler import Batch
from apr.engine.slots import SlotEngine
from tests.engine.conftest import Tape

VOCABULARY, WINDOW, SLOTS = 23, 48, 12
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
         "max_position_embeddings": WINDOW, "initializer_range": 0.2, "pad_token_id": None}  # fmt: skip


def make_model(tiny_llama, kind: str):
    torch.manual_seed(0)
    if kind == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": WINDOW, "initializer_range": 0.2}
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape)).eval()
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)).eval()
    if kind == "llama of heads":
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**SHAPE)).eval()
    model = tiny_llama(VOCABULARY, WINDOW, attn_implementation="eager" if kind == "eager" else "sdpa")
    return model.bfloat16() if kind == "bfloat16" else model


@pytest.fixture
def model(tiny_llama):
    return make_model(tiny_llama, "llama")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Buckets as small as the tests."""
    for name, value in {"ROWS": 2, "MANY": 4, "REACH": 8}.items():
        monkeypatch.setattr(static, name, value)


def test_buckets_by_hand(monkeypatch):
    monkeypatch.undo()
    sizes = [row_bucket(rows, 2048) for rows in range(1, 2049)]
    assert sorted(set(sizes)) == [16, 32, 64, 128, *range(256, 2049, 256)]
    assert all(rows <= size for rows, size in enumerate(sizes, 1))
    assert [row_bucket(rows, 300) for rows in (1, 17, 256, 257, 300)] == [16, 32, 256, 300, 300]
    assert row_bucket(1, 3) == 3
    assert [reach_bucket(reach, 512) for reach in (1, 128, 129, 512)] == [128, 128, 256, 512]
    assert [reach_bucket(reach, 4096) for reach in (1, 1025, 4096)] == [1024, 2048, 4096]
    assert [reach_bucket(reach, 500) for reach in (1, 500)] == [128, 500] and reach_bucket(3, 40) == 40


@pytest.mark.parametrize("kind", ["llama", "eager", "qwen2", "gpt2", "bfloat16"])
def test_any_rows_give_what_the_launched_pass_gives(tiny_llama, tapes, kind):
    assert check_rows(make_model(tiny_llama, kind), kind == "bfloat16") == len(tapes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["llama", "llama of heads", "eager", "qwen2", "qwen3", "gpt2", "bfloat16"])
def test_any_rows_give_what_the_launched_pass_gives_by_cuda_graphs(tiny_llama, kind):
    check_rows(make_model(tiny_llama, kind).cuda(), kind == "bfloat16")


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="no TRITON_INTERPRET=1")
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["llama of heads", "qwen2", "qwen3"])
def test_steps_in_triton_give_what_the_launched_pass_gives(tiny_llama, kind, groups, monkeypatch):
    """By its interpreter. On a GPU the test before is of them."""
    monkeypatch.setattr(llama, "DEVICES", ("cpu",))
    monkeypatch.setitem(SHAPE, "num_key_value_heads", groups)
    model = make_model(tiny_llama, kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms, which are ones, and biases, which are zeros
                parameter.uniform_(0.5, 1.5)
    assert StaticModel(model, SLOTS, WINDOW).any_slots
    check_rows(model, False, recorded=False)


@torch.inference_mode()
def check_rows(model, rounded: bool, recorded: bool = True) -> int:
    """Threads of any length in any slots: all that they have, then a token of some of them at a time. How
    many passes were recorded."""
    rng = np.random.default_rng(0)
    one, other = StaticModel(model, SLOTS, WINDOW), PaddedModel(model, SLOTS, WINDOW)
    ids = rng.integers(VOCABULARY, size=(SLOTS, WINDOW))
    length = rng.integers(1, WINDOW - 1, SLOTS)
    everything = np.arange(SLOTS), np.zeros(SLOTS, np.int64), length
    warm = np.where(np.arange(SLOTS) % 3 == 0, 0.0, 0.8), rng.random(SLOTS)
    batch = Batch(ids, *everything, *warm)
    for got, expected in zip(one.sample(batch), other.sample(batch), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    for size in [1, 2, 3, 5, 11, 12, 2, 1]:
        slots = rng.permutation(SLOTS)[:size]
        warm = np.where(rng.random(size) < 0.4, 0.0, rng.uniform(0.5, 2.0, size)), rng.random(size)
        batch = Batch(ids, slots, length[slots], length[slots] + 1, *warm)
        tokens, logprobs = one.sample(batch)
        expected, about = other.sample(batch)
        if rounded:  # rounds more than what decides between tokens
            assert (tokens == expected).mean() >= 0.5
        else:
            assert tokens.tolist() == expected.tolist()
            np.testing.assert_allclose(logprobs, about, atol=1e-5)
    if recorded:
        assert {prefix for _, _, prefix in one._recorded} == ({False} if one.any_slots else {True, False})
    return len(one._recorded)


def rollouts(model, kind, monkeypatch) -> dict:
    """Forty threads in twelve slots that are joined, wait, lose their slots, and end."""
    monkeypatch.setattr(apr.engine.slots, "runner_of", lambda model: kind)
    engine, rng, told, joined = SlotEngine(model, range(6), SLOTS, WINDOW), np.random.default_rng(1), {}, {}
    for key in range(40):
        prompt = rng.integers(6, VOCABULARY, rng.integers(1, 9)).tolist()
        engine.open(key, prompt, Sampling(key % 4 / 3, key), WINDOW - key % 5)
    while engine.busy:
        for key, segment in engine.step():
            told.setdefault(key, []).append((segment.ids, np.round(segment.logprobs, 5).tolist()))
            joined[key] = joined.get(key, 0) + 1
            if segment.reason == "stop" and joined[key] < 4 and int(engine.table.length.max()) < 30:
                engine.extend(key, [7, 8, 9][: joined[key]], WINDOW)
            else:
                engine.close(key)
    return told


def test_rollouts_are_those_of_launched_passes(model, tapes, monkeypatch):
    replayed = rollouts(model, StaticModel, monkeypatch)
    assert replayed.keys() == set(range(40)) and sum(map(len, replayed.values())) > 45
    assert len(tapes) <= 2 * 4 * static.REACHES  # shapes, however many steps
    assert rollouts(model, StaticModel, monkeypatch) == replayed
    launched = rollouts(model, PaddedModel, monkeypatch)
    assert {k: [ids for ids, _ in parts] for k, parts in replayed.items()} == {
        k: [ids for ids, _ in parts] for k, parts in launched.items()
    }
    for key, parts in launched.items():
        for (_, one), (_, other) in zip(replayed[key], parts, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


def decode(made: StaticModel) -> list[float]:
    """What 3 threads sample greedily in a step after their prompts: log-probabilities."""
    ids = np.arange(SLOTS * WINDOW).reshape(SLOTS, WINDOW) % VOCABULARY
    slots, zero, four = np.arange(3), np.zeros(3, np.int64), np.full(3, 4)
    made.sample(Batch(ids, slots, zero, four, np.zeros(3), np.zeros(3)))
    return made.sample(Batch(ids, slots, four, four + 1, np.zeros(3), np.zeros(3)))[1].tolist()


@torch.inference_mode()
def test_what_is_recorded_serves_reloaded_weights_unless_they_have_moved(tiny_llama, model, tapes):
    made = StaticModel(model, SLOTS, WINDOW)
    before, recorded = decode(made), made._recorded
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    made.reload(model)
    after = decode(made)
    assert made._recorded is recorded and list(recorded) == [(4, 16, True)] and len(tapes) == 1
    assert after != before and after == decode(StaticModel(model, SLOTS, WINDOW))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)
    made.reload(model)
    moved = decode(made)
    assert len(tapes) == 3 and moved != after and moved == decode(StaticModel(model, SLOTS, WINDOW))


@torch.inference_mode()
def test_a_model_that_cannot_be_recorded_is_decoded_as_it_was(model, monkeypatch):
    expected, asked = decode(StaticModel(model, SLOTS, WINDOW)), []  # nothing is recorded on a CPU
    monkeypatch.setattr(graphs, "recorder", lambda device: asked.append)
    made = StaticModel(model, SLOTS, WINDOW)
    np.testing.assert_allclose(decode(made), expected, atol=1e-5)
    assert len(asked) == 1 and made._record is None


def test_a_step_that_waits_for_the_gpu_is_not_recorded(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step(message):
        if modes == ["error"]:
            raise RuntimeError(message)

    with pytest.warns(UserWarning, match="no CUDA graphs"):
        assert graphs._graph(lambda: step("called a synchronizing CUDA operation"), (0, 0), None) is None
    assert modes == ["error", 0]
    modes.clear()
    with pytest.raises(RuntimeError, match="out of memory"):
        graphs._graph(lambda: step("CUDA out of memory"), (0, 0), None)
    assert modes == ["error", 0]


@torch.inference_mode()
def test_a_step_compiles_as_a_whole(model, tapes):
    """Without a graph break: it looks at no value, and Python decides nothing on its way."""
    made = StaticModel(model, SLOTS, WINDOW)
    decode(made)
    expected = made._drawn.clone()
    made._drawn.zero_()
    step = partial(PaddedModel._run, made)
    torch.compile(step, fullgraph=True, dynamic=False, backend="eager")(4, 16, True)
    assert torch.equal(made._drawn[0], expected[0])


@torch.inference_mode()
def test_a_step_takes_nothing_from_the_host():
    """On a device that holds no values, a value that is looked at would be an error."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=VOCABULARY)).eval()
        rotary = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    for each in (model, rotary):
        made = StaticModel(each, SLOTS, WINDOW)
        for prefix in (True, False):
            with Tape() as tape:
                PaddedModel._run(made, 4, 16, prefix)
            tensors = [x for x in tree_leaves(tape.calls) if isinstance(x, torch.Tensor)]
            assert len(tensors) > 100 and {x.device.type for x in tensors} == {"meta"}


@torch.inference_mode()
def test_weights_that_have_diverged_are_an_error(model):
    model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        decode(StaticModel(model, SLOTS, WINDOW))
