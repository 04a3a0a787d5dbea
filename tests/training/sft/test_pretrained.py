"""From a pretrained model with a tokenizer of its own to an evaluated policy, with adapters all the way.

There is no hub here: the pretrained models are made on the spot, of the architectures, tokenizers and file
layouts of real ones.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
)

from apr.core.errors import CheckpointError
from apr.core.files import read_rows
from apr.core.params import overlay
from apr.engine.checkpoint import load_model
from apr.engine.slots import SlotEngine
from apr.evaluation.points import ModelId, point_columns, points
from apr.evaluation.results import EVAL_SCHEMA
from apr.evaluation.sweep import evaluate
from apr.language.tokenizer import load_language
from apr.results.checks import _check_rows, _Findings
from apr.rollouts.decoding import orchestrate
from apr.rollouts.rollout import Request
from apr.tasks import make_tokenizer, open_task
from apr.tasks.problems import make_problems, read_problems
from apr.training.rl.train import train_rl
from apr.training.sft.train import train_sft
from apr.training.sft.trainer import PackedSFTTrainer
from apr.training.traces import TRACE_SCHEMA, make_traces

ROOT = Path(__file__).parents[3]
SUMS = [f" {a} + {b} = {a + b}, {a + b} - {b} = {a}, {a} * {b} = {a * b}, {a * b} / {a} = {b}\n"
        for a in range(1, 13) for b in range(1, 13)]  # fmt: skip
TEXT = "".join([(ROOT / "LICENSE").read_text()] * 4 + SUMS * 6)  # which nobody edits
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1}  # fmt: skip
FAMILIES = {
    # As small Qwens are: tied embeddings, with more rows than there are tokens, new ones included.
    "qwen": Qwen3Config(vocab_size=640, head_dim=16, tie_word_embeddings=True, **SHAPE),
    "llama": LlamaConfig(vocab_size=512, tie_word_embeddings=False, **SHAPE),
}
SECTIONS = {
    "problems": {"number_range": [1, 6], "target_range": [1, 15], "max_value": 30, "train": 10, "test": 4},
    "grammar": {"window": 160},
    "traces": {"problems": 10, "methods": {"apr": {"beam": [3, 3], "candidates": 8, "only_solved": True}}},
    "sft": {
        "lora": {"rank": 16, "alpha": 32}, "tokens": {"apr": 60000}, "optimizer": "adamw",
        "row_tokens": 256, "rows_per_step": 1, "checkpoint_steps": 1000, "child_share": 1.0,
    },
    "rl": {
        "policies": {"apr": {"method": "apr"}}, "steps": 2, "prompts": 10, "group": 4, "rows_per_device": 8,
        "optimizer": "adamw", "learning_rate": 1e-3, "lora": {"rank": 4, "alpha": 8}, "temperature": 0.7,
    },
    "engine": {"slots": 32, "max_tokens": 1024},
    "eval": {
        "problems": 4,
        "sweeps": {"one": {"models": ["apr"], "stages": ["sft", "rl"], "temperatures": [0.0, 1.0],
                           "conditions": [None, 2]}},
    },
}  # fmt: skip


def train_tokenizer(path, config):
    """Byte-level BPE of 512 tokens: numbers digit by digit, as Qwen's, or learnt as any text, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))  # fmt: skip
    if config.model_type == "qwen3":
        model = json.loads(tokenizer.to_str())["model"]
        vocab = {text: token - 1 for text, token in model["vocab"].items() if token}  # <|endoftext|> is last
        tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]])
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(path)
    return tokenizer


def pretrain(config, path):
    """Writes a causal LM that has read some text, and what plain sums are. Returns its losses."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ids = torch.tensor(train_tokenizer(path, config).encode(TEXT))
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        starts = torch.randint(len(ids) - 128, (8,)).tolist()
        batch = torch.stack([ids[start : start + 128] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.save_pretrained(path)
    return losses


@pytest.fixture(scope="module", params=list(FAMILIES))
def world(request, make_params, tmp_path_factory):
    """Paths of all that the pipeline makes from a pretrained model: `base`, `tokenizer`, ..., `rl`."""
    root = tmp_path_factory.mktemp(request.param)
    losses = pretrain(FAMILIES[request.param], root / "base")
    assert losses[-1] < 0.6 * losses[0], "it is pretrained"
    params = make_params(**overlay(SECTIONS, {"sft": {"base": str(root / "base")}}))
    make_problems(params, root / "problems")
    make_tokenizer(params, root / "tokenizer")
    train = root / "problems" / "train.parquet"
    make_traces(params, "apr", train, root / "tokenizer", root / "traces.parquet")
    train_sft(params, "apr", root / "traces.parquet", root / "tokenizer", root / "sft")
    train_rl(params, "apr", train, root / "problems/validation.parquet", root / "sft", root / "rl")
    for stage in ("sft", "rl"):
        test, out = root / "problems" / "test.parquet", root / f"{stage}.parquet"
        evaluate(params, "apr", stage, test, root / stage, out)
    return SimpleNamespace(root=root, params=params, language=load_language(root / "rl"))


def plain(path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path).eval()


def weights(directory) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def log(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def test_the_tokenizer_keeps_its_ids_and_gets_the_words(world):
    before, after = (AutoTokenizer.from_pretrained(world.root / name) for name in ("base", "rl"))
    vocabulary = world.language.vocabulary
    assert before.get_vocab().items() < after.get_vocab().items()
    assert sorted(after.get_vocab().values())[-len(vocabulary.new_ids) :] == vocabulary.new_ids
    assert after.encode(TEXT[:5000]) == before.encode(TEXT[:5000])
    padded = plain(world.root / "base").config.vocab_size > max(vocabulary.new_ids)
    rows = 640 if padded else 512 + len(vocabulary.new_ids)
    assert vocabulary.size == rows == plain(world.root / "rl").config.vocab_size
    names = [path.name for path in sorted((world.root / "base").iterdir()) if "tokenizer" in path.name]
    assert not (world.root / "base" / "thread_language.json").exists() and len(names) == 2


def test_the_window_counts_the_tokens_of_the_tokenizer(world, tmp_path):
    rows = read_rows(world.root / "traces.parquet", TRACE_SCHEMA)
    lengths = [row["length"] for row in rows]
    digits = sum(len(world.language.vocabulary.number(n)) - 1 for n in range(10, 31))
    texts = [world.language.vocabulary.decode(row["token_ids"]) for row in rows]
    assert digits > 0 and "<unk>" not in " ".join(texts)
    assert [world.language.vocabulary.encode(text) for text in texts] == [row["token_ids"] for row in rows]
    grammar = world.params.grammar.model_copy(update={"window": max(lengths) - 1})
    params = world.params.model_copy(update={"grammar": grammar})
    train = world.root / "problems" / "train.parquet"
    make_traces(params, "apr", train, world.root / "tokenizer", tmp_path / "traces.parquet")
    kept = {row["problem_id"] for row in read_rows(tmp_path / "traces.parquet", TRACE_SCHEMA)}
    longest = {row["problem_id"] for row in rows if row["length"] == max(lengths)}
    assert longest and kept == {row["problem_id"] for row in rows} - longest


def test_the_loss_falls_and_rl_has_something_to_learn_from(world):
    losses = [line["loss"] for line in log(world.root / "sft")]
    assert losses[-1] < losses[0] / 4
    lines = log(world.root / "rl")
    assert any(line["reward"] > 0 and line["grad_norm"] > 0 for line in lines)
    assert any(line["children"] > 0 for line in lines)


def test_only_adapters_and_rows_of_new_words_are_trained(world):
    """Each weight of the merged model, worked out by hand from the base and the adapter's file."""
    base, merged = weights(world.root / "base"), weights(world.root / "sft")
    adapter = load_file(world.root / "sft" / "adapter" / "adapter_model.safetensors")
    new, old = world.language.vocabulary.new_ids, 512
    tied = "lm_head.weight" not in base
    embeddings = {"model.embed_tokens"} | (set() if tied else {"lm_head"})
    assert merged.keys() == base.keys()
    moved = set()
    for name, weight in merged.items():
        module = name.removesuffix(".weight")
        key = f"base_model.model.{module}"
        if module in embeddings:
            assert torch.equal(weight[:old], base[name][:old])
            rows = adapter.pop(f"{key}.token_adapter.trainable_tokens_delta")
            assert torch.equal(weight[new], rows)
            moved.add(module)
        elif f"{key}.lora_A.weight" in adapter:
            down, up = (adapter.pop(f"{key}.lora_{side}.weight") for side in "AB")
            torch.testing.assert_close(weight, base[name] + 2 * up @ down, atol=1e-5, rtol=1e-5)
            moved.add(module)
        else:
            assert torch.equal(weight, base[name])
    assert not adapter and len(moved) == len(embeddings) + 2 * 7


def test_rows_of_new_words_begin_as_the_mean_of_their_text_and_move(world):
    base, merged = weights(world.root / "base"), weights(world.root / "sft")
    tokenizer, ids = AutoTokenizer.from_pretrained(world.root / "base"), world.language.vocabulary.ids
    for word in ("spawn", "joined", "go", ":1", "#2"):
        began = base["model.embed_tokens.weight"][tokenizer.encode(word)].mean(0)
        ended = merged["model.embed_tokens.weight"][ids[word]]
        assert 0.05 < (ended - began).norm() / began.norm() < 10
        other = base["model.embed_tokens.weight"][tokenizer.encode("the")].mean(0)
        assert (ended - began).norm() < (ended - other).norm()


@pytest.mark.parametrize("stage, on", [("sft", "base"), ("rl", "sft")])
def test_merged_and_adapter_are_one_model_in_plain_transformers_and_peft(world, stage, on):
    rows = read_rows(world.root / "traces.parquet", TRACE_SCHEMA)
    ids = torch.tensor([row["token_ids"][:40] for row in rows if row["length"] >= 40])
    model = plain(world.root / on)
    model.resize_token_embeddings(world.language.vocabulary.size)  # nothing to do where rows are padded
    adapted = PeftModel.from_pretrained(model, world.root / stage / "adapter").eval()
    with torch.no_grad():
        expected = plain(world.root / stage)(ids).logits
        torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-3, rtol=1e-4)
        with adapted.disable_adapter():
            assert (adapted(ids).logits - expected).abs().max() > 1e-2


@torch.no_grad()
def test_the_engine_samples_from_what_plain_transformers_computes(world):
    """Log-probabilities of every token of every thread, greedy or at temperature 1."""
    params, language = world.params, world.language
    task = open_task(params, language)
    problems = read_problems(task, world.root / "problems" / "train.parquet")
    requests = [Request(p.id, task.prompt(p), temperature, 1)
                for p in problems for temperature in (0.0, 1.0)]  # fmt: skip
    model = load_model(world.root / "rl", "cpu")
    engine = SlotEngine(model, language.syntax.stop_ids, 16, params.grammar.window)
    threads = [thread for rollout in orchestrate(params, language, engine).run(requests)
               for thread in rollout.threads]  # fmt: skip
    model = plain(world.root / "rl")
    assert len(threads) > len(requests), "some spawn"
    for thread in threads:
        scores = model(torch.tensor([thread.ids])).logits[0].log_softmax(-1)
        for place, (token, sampled) in enumerate(zip(thread.ids, thread.sampled, strict=True)):
            if sampled:
                assert thread.logprobs[place] == pytest.approx(scores[place - 1, token].item(), abs=1e-4)


def test_evaluations_are_complete(world):
    problems = read_problems(open_task(world.params), world.root / "problems" / "test.parquet")
    for stage in ("sft", "rl"):
        model = ModelId(stage, "apr")
        found, expected = _Findings(), [(problem, point_columns(world.params, model, problem, point))
                                        for problem in problems for point in points(world.params, model)]
        path = world.root / f"{stage}.parquet"
        _check_rows(world.params, path, expected, found)
        assert not found.faults and found.looked_at["evaluation rows"] == len(expected) == 16
        assert any(row["status"] == "done" for row in read_rows(path, EVAL_SCHEMA))


class Killed(BaseException):
    """Stands for a kill: no handler of the program sees it."""


def test_a_killed_run_goes_on_and_a_second_one_starts_from_the_first(world, tmp_path, monkeypatch):
    sft = world.params.sft.model_copy(update={"tokens": {"apr": 2000}, "checkpoint_steps": 2})
    params = world.params.model_copy(update={"sft": sft})

    def train(name, params=params):
        train_sft(params, "apr", world.root / "traces.parquet", world.root / "tokenizer", tmp_path / name)
        return tmp_path / name

    whole, loss = train("whole"), PackedSFTTrainer.compute_loss

    def dying(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise Killed
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(PackedSFTTrainer, "compute_loss", dying)
    with pytest.raises(Killed):
        train("killed")
    monkeypatch.undo()
    assert (tmp_path / "killed.work" / "checkpoint-4").is_dir()
    killed = train("killed")
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    second = train("second", params.model_copy(update={"sft": sft.model_copy(update={"base": str(whole)})}))
    before, after = weights(whole), weights(second)
    assert {name for name in after if not torch.equal(before[name], after[name])} == {
        name for name in after if "_proj" in name
    }
    assert load_language(second).vocabulary.ids == world.language.vocabulary.ids


def test_bad_bases(world, make_params, tmp_path):
    def base(path, **sections):
        return make_params(**overlay(SECTIONS, {"sft": {"base": str(path)}, **sections}))

    with pytest.raises(CheckpointError, match="thread language has task .* :1 :2; allowed: .* :1 :2 :3, as"):
        make_tokenizer(base(world.root / "sft", problems={"numbers": 4}), tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="config.json is missing"):
        make_tokenizer(base(tmp_path), tmp_path / "tokenizer")
    words, train = tmp_path / "words", world.root / "problems" / "train.parquet"
    make_tokenizer(make_params(), words)
    make_traces(world.params, "apr", train, words, tmp_path / "traces.parquet")
    with pytest.raises(CheckpointError, match="the tokenizer was not made for this model"):
        train_sft(world.params, "apr", tmp_path / "traces.parquet", words, tmp_path / "sft")
    shutil.copytree(world.root / "base", tmp_path / "other")
    other = AutoTokenizer.from_pretrained(tmp_path / "other")
    other.add_tokens("one more")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"the tokenizer (was not made for|has 513)"):
        train_sft(base(tmp_path / "other"), "apr", world.root / "traces.parquet", world.root / "tokenizer",
                  tmp_path / "sft")  # fmt: skip
    broken = json.loads((world.root / "tokenizer" / "tokenizer.json").read_text())
    broken["added_tokens"] = broken["added_tokens"][:5]
    shutil.copytree(world.root / "tokenizer", tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text(json.dumps(broken))
    with pytest.raises(CheckpointError, match="not a tokenizer of the thread language"):
        load_language(tmp_path / "broken")
