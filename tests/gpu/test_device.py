"""What a GPU computes, against float64 or a CPU. Without a GPU the CPU stands for it: by eager flex
attention, by tapes for graphs, by passes of fixed shapes against its C kernels.

Largest errors are recorded as properties, which `workflow.gpu` prints.
"""

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from trl.trainer.utils import add_fused_lm_head

from apr.core.params import Model
from apr.engine.interface import Sampling
from apr.engine.runners.padded import PaddedModel
from apr.engine.runners.static import StaticModel
from apr.engine.scheduler import Batch
from apr.engine.slots import SlotEngine
from apr.training.attention import flex, one_size
from apr.training.checkpoint import new_model
from apr.training.rl.update import score
from tests.engine.conftest import tapes  # noqa: F401  (a fixture)

pytestmark = pytest.mark.gpu
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
WORDS, WINDOW = 130, 512 if GPU else 96
SHAPE = Model(layers=5, hidden=256, heads=4, kv_heads=2, ffn=576) if GPU else Model(
    layers=2, hidden=64, heads=2, kv_heads=1, ffn=96)  # fmt: skip
PART = 1 if GPU else 4
LENGTHS = [[-(-length // PART) for length in row] for row in (
    [512, 1, 77, 128, 300, 6], [5], [129, 383, 512, 512, 512, 40, 200], [256] * 8)]  # fmt: skip
"""Of threads of rows; all rows but the first have lengths that no kernel was compiled at."""


@pytest.fixture
def error(record_property):
    """Fails if a largest error is above what is allowed; it is recorded before."""

    def check(name: str, found: torch.Tensor, expected: torch.Tensor, allowed: float) -> None:
        largest = (found.detach().double().cpu() - expected.detach().double().cpu()).abs().max().item()
        record_property(name, largest)
        assert largest <= allowed, f"{name}: {largest:.2g}, allowed: {allowed:.2g}"

    return check


def make_model(attention: str = "sdpa", scale: float = 3.0) -> torch.nn.Module:
    """Weights in which not all tokens are equally likely."""
    model = new_model(SHAPE, WORDS, 0, WINDOW, 1, attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1)
    return model


def row_of(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and positions (1, T) of threads."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (1, sum(lengths)), generator=generator)
    return ids, torch.cat([torch.arange(length) for length in lengths])[None]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_flex_attention_and_its_gradients(precision, error, monkeypatch):
    """Rows of any lengths by one kernel, that is not compiled again, against float64 thread by thread."""
    if not GPU:  # PyTorch refuses gradients there, although its formula for them is the same
        monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    size = 4096 // PART
    exact = precision == torch.float32
    for place, lengths in enumerate(LENGTHS):
        _, positions = row_of(lengths)
        generator = torch.Generator().manual_seed(place)
        shapes = [(1, heads, sum(lengths), 64) for heads in (4, 2, 2)]
        inputs = [torch.randn(shape, generator=generator).to(precision) for shape in shapes]
        weights = torch.randn(1, sum(lengths), 4, 64, generator=generator).to(precision)
        there = [x.to(DEVICE).requires_grad_() for x in inputs]
        with torch._dynamo.config.patch(error_on_recompile=place > 0):
            found = flex(*there, positions.to(DEVICE), 0.125, size)
            grads = torch.autograd.grad((found * weights.to(DEVICE)).sum(), there)
        exactly = [x.double().requires_grad_() for x in inputs]
        threads = zip(*(x.split(lengths, 2) for x in exactly), strict=True)
        alone = [scaled_dot_product_attention(*thread, is_causal=True, scale=0.125, enable_gqa=True)
                 for thread in threads]  # fmt: skip
        expected = torch.cat(alone, 2).transpose(1, 2)
        wanted = torch.autograd.grad((expected * weights.double()).sum(), exactly)
        error(f"output {place}", found, expected, 1e-4 if exact else 3e-2)
        for name, grad, want in zip("qkv", grads, wanted, strict=True):
            scale = max(1.0, want.abs().max().item())
            error(f"gradient of {name} {place}", grad / scale, want / scale, 1e-4 if exact else 3e-2)


def test_fused_output_layer(error):
    """TRL's, for large vocabularies, with gradients."""
    ids, positions = row_of([WINDOW // 2, 9, WINDOW // 4])
    labels = ids.roll(-1).masked_fill(positions.roll(-1) == 0, -100)
    plain, model = make_model().double(), make_model()
    add_fused_lm_head(model, temperature=0.7)
    model = model.to(DEVICE)
    given = {"input_ids": ids.to(DEVICE), "shift_labels": labels.to(DEVICE), "fused_lm_head": True}
    found = model(**given).log_probs[0]
    logits = plain(input_ids=ids, use_cache=False).logits[0] / 0.7
    expected = logits.log_softmax(-1).gather(1, labels[0].clamp(min=0)[:, None])[:, 0]
    counted = labels[0] != -100
    error("log-probabilities", found[counted.to(DEVICE)], expected[counted], 1e-3)
    found[counted.to(DEVICE)].sum().backward()
    expected[counted].sum().backward()
    wanted, got = (m.model.layers[0].mlp.down_proj.weight.grad for m in (plain, model))
    error("gradient", got / wanted.abs().max().item(), wanted / wanted.abs().max(), 1e-3)


@torch.no_grad()
def test_rotary_angles(error):
    """Products of these would round in TF32."""
    model, positions = make_model().to(DEVICE), torch.arange(WINDOW)[None]
    rotary = model.model.rotary_emb
    found = torch.stack(rotary(torch.zeros(1, device=DEVICE), positions.to(DEVICE)))
    angles = positions[0, :, None] * rotary.original_inv_freq.double().cpu()
    expected = torch.stack([angles.cos(), angles.sin()]).repeat(1, 1, 2)[:, None]
    error("rotary", found, expected, 1e-4)


@torch.no_grad()
def test_logits_of_packed_rows(error):
    lengths = [WINDOW, 3, WINDOW // 2, 17]
    ids, positions = row_of(lengths)
    model, exact = make_model("packed").to(DEVICE), make_model("eager").double()
    one_size(model, 2 * WINDOW)
    found = model(input_ids=ids.to(DEVICE), position_ids=positions.to(DEVICE), use_cache=False).logits[0]
    expected = torch.cat([exact(input_ids=part, use_cache=False).logits[0] for part in ids.split(lengths, 1)])
    scale = expected.abs().max()
    error("logits", found.cpu() / scale, expected / scale, 1e-4)


def decode(model, temperature: float, runner=None) -> dict[int, list]:
    """Threads of random prompts, that are joined once, as segments."""
    with pytest.MonkeyPatch.context() as patch:
        if runner:
            patch.setattr("apr.engine.slots.runner_of", lambda model: runner)
        engine, rng, told = SlotEngine(model, range(4), 24, WINDOW), np.random.default_rng(2), {}
        for key in range(40):
            prompt = rng.integers(4, WORDS, rng.integers(1, 40)).tolist()
            engine.open(key, prompt, Sampling(temperature, key), WINDOW - key)
            told[key] = [prompt]
        while engine.busy:
            for key, segment in engine.step():
                told[key].append(segment)
                room = int(engine.table.length.max()) < WINDOW - 50
                if segment.reason == "stop" and len(told[key]) == 2 and room:
                    engine.extend(key, [7, 8, 9], WINDOW - key)
                else:
                    engine.close(key)
    return told


def test_greedy_rollouts(error, record_property, request):
    """A near tie may fall differently; then its thread goes another way."""
    if not GPU:  # which records what Triton does, too
        request.getfixturevalue("tapes")
    found, expected = decode(make_model().to(DEVICE), 0.0, StaticModel), decode(make_model(), 0.0)
    same = [key for key in expected if [s.ids for s in found[key][1:]] == [s.ids for s in expected[key][1:]]]
    record_property("equal threads", f"{len(same)} of {len(expected)}")
    assert len(same) >= 0.9 * len(expected)
    pairs = [pair for key in same for pair in zip(found[key][1:], expected[key][1:], strict=True)]
    one, other = (torch.tensor([p for pair in pairs for p in pair[side].logprobs]) for side in (0, 1))
    error("log-probabilities", one, other, 1e-3)


def test_the_sampler_is_the_trainer(error, record_property):
    """Log-probabilities that threads were sampled with, against those that RL scores them with."""
    model = make_model("packed").to(DEVICE)
    threads = list(decode(model, 1.0, StaticModel).values())
    ids, logprobs, positions = [], [], []
    for prompt, *segments in threads:
        joined = [[7, 8, 9] if place else [] for place in range(len(segments))]
        thread = prompt + [x for more, s in zip(joined, segments, strict=True) for x in more + s.ids]
        scores = [None] * len(prompt) + [
            x for more, s in zip(joined, segments, strict=True) for x in [None] * len(more) + s.logprobs]
        ids, logprobs, positions = ids + thread, logprobs + scores, positions + list(range(len(thread)))
    one_size(model, len(ids))
    with torch.no_grad():
        row = (torch.tensor([each], device=DEVICE) for each in (ids, positions))
        found = score(model, *row, 1.0)[0]
    sampled = [place for place, x in enumerate(logprobs) if x is not None]
    record_property("tokens", len(sampled))
    assert len(sampled) > 500
    error("log-probabilities", found[sampled], torch.tensor([logprobs[place] for place in sampled]), 1e-3)


@torch.inference_mode()
def test_graphs_after_weights_have_changed_and_moved(error, request):
    """In place, as an optimiser changes them, and to another place: what was recorded, against launches."""
    recorded = request.getfixturevalue("tapes") if not GPU else None
    model = make_model().to(DEVICE)
    slots = 64 if GPU else 12
    rng = np.random.default_rng(3)
    ids, length = rng.integers(WORDS, size=(slots, WINDOW)), rng.integers(1, WINDOW - 9, slots)
    one, other = StaticModel(model, slots, WINDOW), PaddedModel(model, slots, WINDOW)
    noise, before = rng.random(slots), None
    for change in ("none", "in place", "moved"):
        if change == "in place":
            for parameter in model.parameters():
                parameter.mul_(1.1)
        elif change == "moved":
            for layer in model.model.layers:
                layer.mlp.down_proj.weight = torch.nn.Parameter(layer.mlp.down_proj.weight * 1.5)
        one.reload(model)
        other.reload(model)
        everything = np.arange(slots), np.zeros(slots, np.int64), length
        read = Batch(ids, *everything, np.ones(slots), noise)
        for each in (one, other):
            each.sample(read)
        for _ in range(2):  # recorded, then replayed
            step = Batch(ids, np.arange(slots), length, length + 1, np.ones(slots), noise)
            (tokens, logprobs), (same, expected) = one.sample(step), other.sample(step)
            agreed = tokens == same
            assert agreed.mean() > 0.95
            pair = (torch.tensor(each[agreed]) for each in (logprobs, expected))
            error(f"log-probabilities, {change}", *pair, 1e-4)
        assert one._recorded, "nothing was recorded"
        assert before is None or not np.array_equal(before, expected)
        before = expected
    assert recorded is None or len(recorded) == 2
