"""Checkpoints are written whole, read back equal, and refused in one line where something is missing."""

import json
import shutil

import pytest
import torch

from apr.core.errors import CheckpointError
from apr.core.params import Model
from apr.engine.checkpoint import load_model
from apr.language import Language, Vocabulary
from apr.language.tokenizer import load_language, save_tokenizer
from apr.training.checkpoint import new_model, save_checkpoint

TINY = Model(layers=1, hidden=16, heads=2, kv_heads=1, ffn=24)


@pytest.fixture(scope="module")
def language():
    return Language(Vocabulary(20, ["+", "="], 10))


@pytest.fixture
def checkpoint(language, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    save_tokenizer(language, tokenizer)
    save_checkpoint(new_model(TINY, language.vocabulary.size, 0, 64, seed=5), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_new_model_depends_on_the_seed_alone():
    torch.manual_seed(0)
    first = new_model(TINY, 30, 0, 64, seed=5).state_dict()
    drawn = torch.rand(())
    torch.manual_seed(0)
    assert torch.rand(()) == drawn, "the global generator is left alone"
    again, other = (new_model(TINY, 30, 0, 64, seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_reads_back_what_was_written(checkpoint, language):
    model = load_model(checkpoint, device="cpu")
    expected = new_model(TINY, language.vocabulary.size, 0, 64, seed=5).state_dict()
    assert not model.training
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert load_language(checkpoint).vocabulary.ids == language.vocabulary.ids
    assert load_model(checkpoint, "cpu", attention="packed").config._attn_implementation == "packed"


def remove_weights(path):
    (path / "model.safetensors").unlink()


def cut_weights(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-200])


def shrink_tokenizer(path):
    content = json.loads((path / "tokenizer.json").read_text())
    content["model"]["vocab"].popitem()
    (path / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (shutil.rmtree, "no such checkpoint"),
        (lambda path: (path / "config.json").unlink(), "config.json is missing"),
        (lambda path: (path / "config.json").write_text("{"), "not readable as JSON"),
        (remove_weights, "model.safetensors is missing"),
        (cut_weights, "weights not readable"),
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (shrink_tokenizer, "the tokenizer has .* tokens, the checkpoint's vocabulary"),
    ],
)
def test_errors_are_one_line_that_names_the_directory(checkpoint, spoil, message):
    spoil(checkpoint)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(checkpoint, device="cpu")
    assert str(checkpoint) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_that_does_not_fit_is_not_saved(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="the checkpoint's vocabulary 30"):
        save_checkpoint(new_model(TINY, 30, 0, 64, seed=5), checkpoint, tmp_path / "other")
    assert not (tmp_path / "other").exists()
