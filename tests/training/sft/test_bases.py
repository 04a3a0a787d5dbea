"""Bases of many families and settings: refused in one line before the first step, or trained to the end,
saved and decoded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from apr.core.errors import CheckpointError
from apr.core.files import read_json, write_json
from apr.engine.checkpoint import load_model
from apr.engine.interface import Sampling
from apr.engine.slots import SlotEngine
from apr.language.tokenizer import load_language
from apr.tasks import make_tokenizer
from apr.tasks.problems import make_problems
from apr.training.rl.train import train_rl
from apr.training.sft.train import train_sft
from apr.training.sft.trainer import PackedSFTTrainer
from apr.training.traces import make_traces

ROWS = 384
NAMES = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE = {**NAMES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
GPT2 = {"vocab_size": ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
TRAINED = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_dropout=0.1),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True, use_sliding_window=False, sliding_window=16),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=192),
    "gemma": GemmaConfig(**SHAPE, head_dim=8),
    "gpt2": GPT2Config(**GPT2),
    "granite": GraniteConfig(**SHAPE, logits_scaling=4.0),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, output_router_logits=True),
}
REFUSED = {
    "absolute": (GPT2Config(**GPT2 | {"n_positions": 128}), "max_position_embeddings 128 .*window = 160"),
    "short": (LlamaConfig(**SHAPE | {"max_position_embeddings": 64}), "max_position_embeddings 64 is not"),
    "sliding": (MistralConfig(**SHAPE, sliding_window=64), "sliding_window 64 is not allowed; allowed: at"),
    "softcap": (Gemma2Config(**SHAPE, head_dim=8), "'gemma2' is not allowed.*softcap"),
    "alibi": (BloomConfig(vocab_size=ROWS, hidden_size=32, n_layer=2, n_head=4), "'bloom' is not allowed"),
    "both ways": (BertConfig(**NAMES, intermediate_size=48), "'bert' is not allowed"),
    "recurrent": (MambaConfig(vocab_size=ROWS, hidden_size=32, num_hidden_layers=2),
                  "layers of type linear_attention are not allowed; allowed: full_attention"),
}  # fmt: skip


def write_base(config, path: Path) -> Path:
    """A model of random weights, with a byte-level tokenizer that has neither padding nor end of text."""
    torch.manual_seed(0)
    kind = T5ForConditionalGeneration if config.model_type == "t5" else AutoModelForCausalLM
    (kind(config) if config.model_type == "t5" else kind.from_config(config)).save_pretrained(path)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [" 1 + 2 = 3, 4 * 5 = 20 / 10 - 6 7 8 9"] * 9,
        trainers.BpeTrainer(vocab_size=290, show_progress=False, initial_alphabet=alphabet),
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def params_of(make_params):
    def make(base, **sft):
        return make_params(
            problems={"number_range": [1, 6], "target_range": [1, 15], "max_value": 30, "train": 10},
            grammar={"window": 160}, traces={"problems": 10},
            sft={"base": str(base), "tokens": {"apr": 700}, "row_tokens": 256, "rows_per_step": 1,
                 "optimizer": "adamw", **sft},
            rl={"policies": {"apr": {"method": "apr"}}, "steps": 1, "prompts": 2, "group": 2,
                "rows_per_device": 2},
            engine={"slots": 8, "max_tokens": 256},
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_base(TRAINED["llama"], tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def world(llama, params_of, tmp_path_factory):
    """`problems`, `tokenizer` and `traces.parquet` of any of these bases, which have one tokenizer."""
    root, params = tmp_path_factory.mktemp("world"), params_of(llama)
    make_problems(params, root / "problems")
    make_tokenizer(params, root / "tokenizer")
    train = root / "problems/train.parquet"
    make_traces(params, "apr", train, root / "tokenizer", root / "traces.parquet")
    return root


@pytest.fixture
def train(world, params_of, tmp_path):
    """All stages from the tokenizer to SFT; the model that was saved."""

    def run(base, **sft):
        params = params_of(base, **sft)
        make_tokenizer(params, tmp_path / "tokenizer")
        out = tmp_path / f"sft-{base.name}"
        train_sft(params, "apr", world / "traces.parquet", tmp_path / "tokenizer", out)
        return out

    return run


@pytest.fixture
def no_step(monkeypatch):
    monkeypatch.setattr(PackedSFTTrainer, "compute_loss", lambda *_, **__: pytest.fail("a step was made"))


def decode(model) -> list[int]:
    engine = SlotEngine(model, [], 2, 160)
    engine.open("thread", [1, 2, 3], Sampling(0.0, 0), 160)
    while engine.busy:
        for _, segment in engine.step():
            found = segment.ids
    return found


@pytest.mark.parametrize("family", TRAINED)
def test_a_base_of_this_family_is_trained_saved_and_decoded(family, llama, train, world, params_of, tmp_path):
    base = write_base(TRAINED[family], tmp_path / "base")
    out = train(base, lora={"rank": 2, "alpha": 4} if family == "gpt2" else None)
    model, language = load_model(out, "cpu"), load_language(out)
    assert model.dtype == torch.float32 and model.config.vocab_size == language.vocabulary.size
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").open()]
    assert len(losses) >= 2
    assert len(decode(model)) == 157
    if family in ("gpt2", "granite"):
        problems = world / "problems"
        train_rl(params_of(base), "apr", problems / "train.parquet", problems / "validation.parquet", out,
                 tmp_path / "rl")  # fmt: skip
        assert len(decode(load_model(tmp_path / "rl", "cpu"))) == 157


@pytest.mark.parametrize("case", REFUSED)
def test_a_base_that_could_not_be_trained_is_refused_in_one_line(case, train, no_step, tmp_path):
    config, message = REFUSED[case]
    assert_refused(train, write_base(config, tmp_path / "base"), message)


def assert_refused(train, base, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        train(base)
    assert str(base) in str(caught.value) and "\n" not in str(caught.value)


def test_an_encoder_with_a_decoder_is_refused(train, no_step, tmp_path):
    config = T5Config(vocab_size=ROWS, d_model=32, num_layers=1, num_heads=2, d_ff=32)
    assert_refused(train, write_base(config, tmp_path / "base"), "is_encoder_decoder in config.json is")


@pytest.fixture
def base(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "base")


GENERATION = [
    '{"do_sample": false, "temperature": 0.9, "top_p": 0.6}', '{"temperature": "hot", "top_k": -3}',
    '{"num_beams": 4, "num_beam_groups": 7, "made_up": {"a": [1]}}', "{", "[]",
    '{"eos_token_id": 99999, "cache_implementation": "x"}',
]  # fmt: skip


@pytest.mark.parametrize("settings", GENERATION)
def test_how_a_base_samples_by_default_is_harmless(settings, base, train):
    (base / "generation_config.json").write_text(settings)
    out = train(base)
    assert "temperature" not in read_json(out / "generation_config.json")
    assert len(decode(load_model(out, "cpu"))) == 157


@pytest.mark.parametrize("settings", [{"do_sample": False, "temperature": 0.9}, {"top_p": 2.0}])
def test_so_it_is_in_its_config(settings, base, train):
    write_json(base / "config.json", read_json(base / "config.json") | settings)
    assert len(decode(load_model(train(base), "cpu"))) == 157


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_the_size_are_trained_in_float32(dtype, base, train):
    weights = {name: weight.to(dtype) for name, weight in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    write_json(base / "config.json", read_json(base / "config.json") | {"dtype": str(dtype)[6:]})
    out = train(base)
    assert load_model(out, "cpu").dtype == torch.float32
    assert len(decode(load_model(out, "cpu"))) == 157


def change(**settings):
    return lambda base: write_json(base / "config.json", read_json(base / "config.json") | settings)


def text(name, content):
    return lambda base: (base / name).write_text(content)


def spoil_weights(spoil):
    def run(base):
        weights = load_file(base / "model.safetensors")
        spoil(weights)
        save_file(weights, base / "model.safetensors", {"format": "pt"})

    return run


NORM = "model.norm.weight"
SPOILT = {
    "no config": (lambda base: (base / "config.json").unlink(), "config.json is missing"),
    "config of a list": (text("config.json", "[]"), "not a JSON object"),
    "config cut": (text("config.json", '{"model_type": '), "not readable as JSON"),
    "config without a type": (text("config.json", f'{{"vocab_size": {ROWS}}}'), "not readable"),
    "config of a type that is not known": (change(model_type="llamma"), "config.json not readable"),
    "config of odd values": (change(hidden_size="wide"), "not readable"),
    "config without a vocabulary": (change(vocab_size=None), "the checkpoint's vocabulary None|not readable"),
    "config of another config": (change(text_config=3), "config.json not readable"),
    "fewer rows than tokens": (change(vocab_size=250), "the tokenizer has .* tokens, .* vocabulary 250"),
    "other rows than the weights": (change(vocab_size=400), "weights not"),
    "other layers than the weights": (change(num_hidden_layers=3), "weights not those of config.json"),
    "fewer layers than the weights": (change(num_hidden_layers=1), r"layers.1.* is unexpected"),
    "quantised": (change(quantization_config={"quant_method": "gptq"}), "quantization_config in config.json"),
    "weights by another name": (change(transformers_weights="x.safetensors"), "transformers_weights in"),
    "adapters": (text("adapter_config.json", '{"base_model_name_or_path": "x"}'), "adapters .* not allowed"),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "model.safetensors is missing"),
    "weights cut": (lambda base: cut(base / "model.safetensors"), "weights not readable"),
    "weights of nothing": (text("model.safetensors", ""), "weights not readable"),
    "weights of another shape": (
        spoil_weights(lambda weights: weights.update({NORM: torch.ones(31)})), "weights not readable"),
    "a weight too few": (spoil_weights(lambda weights: weights.pop(NORM)), f"{NORM} is missing"),
    "weights that are no numbers": (
        spoil_weights(lambda weights: weights[NORM].fill_(float("nan"))), "finite weights"),
    "no tokenizer": (lambda base: (base / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "a tokenizer of a list": (text("tokenizer.json", "[]"), "not a tokenizer"),
    "a tokenizer of nothing": (text("tokenizer.json", "{}"), "not a tokenizer"),
    "a tokenizer without a model": (text("tokenizer.json", '{"model": {"vocab": {}}}'), "tokenizer"),
    "a tokenizer's broken settings": (text("tokenizer_config.json", "{"), "tokenizer not readable"),
}  # fmt: skip


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_base_is_refused_in_one_line(case, base, train, no_step):
    spoil, message = SPOILT[case]
    spoil(base)
    assert_refused(train, base, message)


@pytest.mark.parametrize("spoil, message", [
    (lambda base: (base / "model-2.safetensors").unlink(), "model-2.safetensors is missing"),
    (text("model.safetensors.index.json", "{}"), "weights not readable"),
    (None, None),
])  # fmt: skip
def test_weights_in_parts(spoil, message, base, train, request):
    weights = load_file(base / "model.safetensors")
    parts = {name: f"model-{1 + index % 2}.safetensors" for index, name in enumerate(weights)}
    for part in set(parts.values()):
        chosen = {name: weight for name, weight in weights.items() if parts[name] == part}
        save_file(chosen, base / part, {"format": "pt"})
    write_json(base / "model.safetensors.index.json", {"metadata": {}, "weight_map": parts})
    (base / "model.safetensors").unlink()
    if spoil is None:
        assert len(decode(load_model(train(base), "cpu"))) == 157
        return
    request.getfixturevalue("no_step")
    spoil(base)
    assert_refused(train, base, message)
