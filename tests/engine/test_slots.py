"""The slot engine against `generate` and against a plain forward pass of each thread alone."""

import copy
import random
import shutil

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from apr.core.errors import CheckpointError
from apr.engine.interface import Sampling
from apr.engine.runners import native
from apr.engine.runners.native import NativeModel
from apr.engine.runners.padded import PaddedModel
from apr.engine.slots import SlotEngine

VOCABULARY, WINDOW, STOP = 23, 48, 5
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def make_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)).eval()
    attention = "eager" if kind == "eager" else "sdpa"
    return LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation=attention)).eval()


@pytest.fixture(params=["llama", "qwen2", "padded", "eager"])
def model(request, monkeypatch):
    """The first two are decoded by `NativeModel`, the others by their own forward pass."""
    if request.param in ("padded", "eager"):
        monkeypatch.setattr(NativeModel, "supports", lambda model: False)
    return make_model(request.param)


@pytest.fixture(scope="module")
def llama():
    return make_model("llama")


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(6, VOCABULARY) for _ in range(rng.randint(1, 12))] for _ in range(count)]


def drain(engine: SlotEngine, joins: dict | None = None) -> dict:
    """Every thread to its end: {key: [segments]}. A thread that stops is extended with `joins[key]`, once
    each, and closed when there is nothing left to join or no room."""
    joins = {key: list(each) for key, each in (joins or {}).items()}
    segments: dict = {}
    lengths: dict = {}
    while engine.busy:
        for key, segment in engine.step():
            segments.setdefault(key, []).append(segment)
            lengths[key] = lengths.get(key, 0) + len(segment.ids)
            if segment.reason == "stop" and joins.get(key) and lengths[key] < 20:
                ids = joins[key].pop(0)
                lengths[key] += len(ids)
                segments[key].append(ids)
                engine.extend(key, ids, WINDOW)
            else:
                engine.close(key)
    return segments


def forward_logprobs(model, ids: list[int], temperature: float) -> torch.Tensor:
    """(T, vocabulary): row t is the distribution of token t + 1, by one plain pass without a cache."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double() / (temperature or 1.0), -1)


def check_logprobs(model, prompt: list[int], parts: list, temperature: float) -> list[int]:
    ids, sampled, logprobs = list(prompt), [False] * len(prompt), [0.0] * len(prompt)
    for part in parts:
        new = part if isinstance(part, list) else part.ids
        ids += new
        sampled += [not isinstance(part, list)] * len(new)
        logprobs += [0.0] * len(new) if isinstance(part, list) else part.logprobs
    expected = forward_logprobs(model, ids, temperature)
    for position, flag in enumerate(sampled):
        if flag:
            assert logprobs[position] == pytest.approx(float(expected[position - 1, ids[position]]), abs=2e-5)
    return ids


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_greedy_is_generate(model, slots):
    engine = SlotEngine(model, [STOP], slots, WINDOW)
    for key, prompt in enumerate(prompts(9)):
        engine.open(key, prompt, Sampling(0.0, 0), WINDOW)
    segments = drain(engine)
    for key, prompt in enumerate(prompts(9)):
        whole = model.generate(torch.tensor([prompt]), do_sample=False, max_length=WINDOW,
                               eos_token_id=STOP, pad_token_id=0)  # fmt: skip
        (segment,) = segments[key]
        assert prompt + segment.ids == whole[0].tolist()
        assert segment.reason == ("stop" if segment.ids[-1] == STOP else "length")
        check_logprobs(model, prompt, [segment], 0.0)


@pytest.mark.parametrize("slots", [1, 2, 5, 40])
def test_logprobs_are_those_of_a_plain_pass_after_joins_reuse_and_eviction(model, slots):
    joins = {key: [[7, 8, 9], [10] * (key % 5 + 1), [6]] for key in range(0, 40, 2)}
    engine = SlotEngine(model, range(0, 8), slots, WINDOW)
    for key, prompt in enumerate(prompts(40)):
        engine.open(key, prompt, Sampling(0.7, key), WINDOW - key % 3)
    segments = drain(engine, joins)
    assert sum(len(parts) > 1 for parts in segments.values()) >= 10
    for key, prompt in enumerate(prompts(40)):
        check_logprobs(model, prompt, segments[key], 0.7)


def test_slots_that_no_thread_has_had_take_no_memory(llama):
    memory = psutil.Process().memory_info
    before = memory().rss
    engine = SlotEngine(llama, [STOP], 1 << 17, WINDOW)  # 1.5 GiB of keys and values
    engine.open(0, [6, 7], Sampling(0.0, 1), WINDOW)
    engine.step()
    assert memory().rss - before < 200 << 20


def test_each_model_is_decoded_as_it_can_be(model, request):
    engine = SlotEngine(model, [STOP], 2, WINDOW)
    in_c = request.node.callspec.params["model"] in ("llama", "qwen2")
    assert type(engine._runner) is (NativeModel if in_c else PaddedModel)


@pytest.mark.parametrize("change", ["bfloat16", "adapters", "activation", "architecture"])
def test_what_is_not_a_plain_float32_llama_is_not_decoded_in_c(change):
    model = make_model("llama")
    if change == "bfloat16":
        model.bfloat16()
    elif change == "adapters":
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).model
    elif change == "activation":
        model.config.hidden_act = "gelu"
    else:
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=VOCABULARY))
    assert not NativeModel.supports(model)


def test_without_a_compiler_decoding_goes_on_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="no C compiler"):
        assert native.load_native.__wrapped__() is None
    monkeypatch.undo()
    (tmp_path / "native.c").write_text("this is not C")
    monkeypatch.setattr(native, "SOURCE", tmp_path / "native.c")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="native.c: does not compile here"):
        assert native.load_native.__wrapped__() is None
    assert not list((tmp_path / "apr").iterdir())


def test_sampled_tokens_do_not_depend_on_the_batch(model):
    def decode(keys, slots):
        engine = SlotEngine(model, range(0, 8), slots, WINDOW)
        for key in keys:
            engine.open(key, prompts(24)[key], Sampling(1.0 if key % 4 else 0.0, 1000 + key), WINDOW)
        return drain(engine, {key: [[9, 10], [11]] for key in keys if key % 3 == 0})

    def ids(segments):
        return [part if isinstance(part, list) else part.ids for part in segments]

    together, crowded = decode(range(24), 24), decode(list(reversed(range(24))), 4)
    for key in range(24):
        alone = decode([key], 1)
        assert ids(alone[key]) == ids(together[key]) == ids(crowded[key])


def test_stopped_threads_lose_their_slots_when_others_wait_and_still_go_on(llama):
    engine = SlotEngine(llama, range(VOCABULARY), 2, WINDOW)  # every token is a stop token
    for key in range(6):
        engine.open(key, [6, 7, 8 + key], Sampling(1.0, key), WINDOW)
    stopped: dict = {}
    while len(stopped) < 6:  # nobody is extended or closed before all have stopped
        stopped.update(engine.step())
    assert not engine.busy
    for key in range(6):
        engine.extend(key, [9, 10], WINDOW)
    again: dict = {}
    while engine.busy:
        for key, segment in engine.step():
            again[key] = segment
            engine.close(key)
    for key in range(6):
        check_logprobs(llama, [6, 7, 8 + key], [stopped[key], [9, 10], again[key]], 1.0)


def test_an_extension_prefills_only_what_was_appended(llama, monkeypatch):
    engine = SlotEngine(llama, range(VOCABULARY), 4, WINDOW)
    engine.open("parent", [6] * 10, Sampling(0.0, 0), WINDOW)
    engine.step()
    engine.extend("parent", [7, 8, 9], WINDOW)
    fed, advance = [], engine._runner.advance

    def record(table, slots, workers):
        fed.append((table.cached[slots].tolist(), table.length[slots].tolist()))
        return advance(table, slots, workers)

    monkeypatch.setattr(engine._runner, "advance", record)
    engine.step()
    assert fed == [([10], [14])]  # the token sampled last and the three that were joined


def test_closing_a_thread_in_any_state_leaves_the_others_alone(llama):
    def decode(closed):
        engine = SlotEngine(llama, [STOP], 4, WINDOW)
        for key, prompt in enumerate(prompts(8)):
            engine.open(key, prompt, Sampling(1.0, key), WINDOW)
        engine._runner.steps = 1
        assert not engine.step()
        for key in closed:  # 0 decodes, 7 waits for a slot
            engine.close(key)
        return drain(engine)

    whole, part = decode([]), decode([0, 7])
    for key in range(1, 7):
        assert part[key][0].ids == whole[key][0].ids


def test_the_limit_counts_the_whole_thread_and_a_stop_there_is_a_stop(llama):
    engine = SlotEngine(llama, [], 2, WINDOW)
    engine.open("a", [6, 7, 8], Sampling(0.0, 0), 9)
    ((key, segment),) = drain(engine).items()
    assert len(segment[0].ids) == 6 and segment[0].reason == "length"
    engine = SlotEngine(llama, [segment[0].ids[0]], 2, WINDOW)
    engine.open("a", [6, 7, 8], Sampling(0.0, 0), 4)
    assert drain(engine)["a"][0].reason == "stop"


def test_misuse_is_an_error(llama):
    engine = SlotEngine(llama, [STOP], 2, WINDOW)
    with pytest.raises(ValueError, match="no room"):
        engine.open("a", [6] * 8, Sampling(1.0, 0), 8)
    with pytest.raises(ValueError, match="no room"):
        engine.open("a", [6] * 8, Sampling(1.0, 0), WINDOW + 1)
    engine.open("a", [6], Sampling(1.0, 0), WINDOW)
    with pytest.raises(ValueError, match="already open"):
        engine.open("a", [6], Sampling(1.0, 0), WINDOW)
    with pytest.raises(ValueError, match="not open and stopped"):
        engine.extend("a", [6], WINDOW)
    with pytest.raises(ValueError, match="not open"):
        engine.close("b")
    with pytest.raises(CheckpointError, match="max_position_embeddings"):
        SlotEngine(llama, [STOP], 2, WINDOW + 1)


def test_the_model_is_left_as_it_was(llama):
    engine = SlotEngine(llama, [STOP], 2, WINDOW)
    engine.open("a", [6], Sampling(1.0, 0), WINDOW)
    engine.step()
    assert llama.config._attn_implementation == "sdpa"
    llama.train()
    with pytest.raises(ValueError, match="eval"):
        engine.step()
    llama.eval()


def test_weights_that_have_diverged_are_an_error(llama):
    broken = make_model("llama")
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    engine = SlotEngine(broken, [STOP], 2, WINDOW)
    engine.open("a", [6], Sampling(1.0, 0), WINDOW)
    with pytest.raises(FloatingPointError):
        engine.step()


@pytest.mark.parametrize("other", [False, True])
def test_reloaded_weights_decode_as_in_a_new_engine(model, other):
    """The same model after a step of training, or another one with its shapes."""

    def decode(engine):
        for key, prompt in enumerate(prompts(9)):
            engine.open(key, prompt, Sampling(key % 2, key), WINDOW)
        return {key: parts[0] for key, parts in drain(engine).items()}

    engine = SlotEngine(model, [STOP], 3, WINDOW)
    before = decode(engine)
    changed = copy.deepcopy(model) if other else model
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
    engine.reload_weights(changed)
    assert decode(engine) == decode(SlotEngine(changed, [STOP], 3, WINDOW)) != before


def test_weights_that_cannot_be_reloaded(llama):
    engine = SlotEngine(llama, [STOP], 2, WINDOW)
    narrow = LlamaForCausalLM(LlamaConfig(**SHAPE | {"intermediate_size": 40})).eval()
    for model in (narrow, make_model("llama").bfloat16(), make_model("qwen2")):
        with pytest.raises(ValueError, match="another architecture"):
            engine.reload_weights(model)
    engine.open("a", [6], Sampling(1.0, 0), WINDOW)
    with pytest.raises(ValueError, match="threads are open"):
        engine.reload_weights(llama)
    engine.close("a")
    engine.reload_weights(llama)
