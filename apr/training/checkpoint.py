"""Checkpoints that are trained and written: plain Hugging Face directories, their tokenizer beside them."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import apr.training.attention  # noqa: F401  (registers "packed")
from apr.core.files import atomic_path, remove
from apr.core.hashes import hash_tree
from apr.core.model_files import check_tokenizer_fits, tokenizer_files
from apr.core.params import Model
from apr.engine.checkpoint import load_model
from apr.training.sharding import sharded


def new_model(
    model: Model, vocabulary_size: int, pad: int, window: int, seed: int, attention: str = "sdpa"
) -> PreTrainedModel:
    """A model with random float32 weights that depend on `seed` and the shapes alone (section 4.1)."""
    config = AutoConfig.for_model(
        model.architecture, vocab_size=vocabulary_size, hidden_size=model.hidden, intermediate_size=model.ffn,
        num_hidden_layers=model.layers, num_attention_heads=model.heads, num_key_value_heads=model.kv_heads,
        head_dim=model.hidden // model.heads,
        max_position_embeddings=window, tie_word_embeddings=model.tie_embeddings,
        pad_token_id=pad, bos_token_id=None, eos_token_id=None, attn_implementation=attention,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def load_trainable(directory: str | Path, device: str) -> PreTrainedModel:
    """Returns the causal LM in `directory` with packed attention and float32 weights; errors as
    `load_model`."""
    return load_model(directory, device, attention="packed").float()


def merge_adapters(model: Any, directory: Path) -> PreTrainedModel:
    """The model with its adapters, if it has any, in its weights; they are also written to `directory`, for
    `PeftModel.from_pretrained` on the model that they were trained on."""
    if not hasattr(model, "merge_and_unload"):
        return model
    for config in model.peft_config.values():
        config.target_modules = sorted(config.target_modules)  # a set: its order would change from run to run
    model.save_pretrained(directory, save_embedding_layers=False)  # rows of new words are in any case
    (directory / "README.md").unlink()  # a model card with nothing filled in
    return model.merge_and_unload()


def identity(settings: Mapping[str, Any], inputs: Iterable[Path]) -> dict[str, Any]:
    """Returns everything that the states of a training depend on: settings, the bytes of its inputs, and
    whether weights are sharded."""
    return {**settings, "inputs": [hash_tree(path, path.parent) for path in inputs], "sharded": sharded()}


@contextmanager
def finished(model: Any, tokenizer: Path, work: Path, out: Path) -> Iterator[tuple[Path, PreTrainedModel]]:
    """Yields the directory that becomes `out`, with model and tokenizer of a training in it, and the model
    without adapters; then moves the speeds that are in `work` beside `out`, and removes `work`."""
    with atomic_path(out) as partial:
        model = merge_adapters(model, partial / "adapter")
        save_checkpoint(model, tokenizer, partial)
        yield partial, model
    os.replace(work / "seconds.jsonl", out.with_name(f"{out.name}.seconds.jsonl"))
    remove(work)


def save_checkpoint(model: PreTrainedModel, tokenizer: Path, directory: Path) -> None:
    """Writes the model as safetensors and the tokenizer files of directory `tokenizer` beside it.

    `directory` is made if needed; make it atomic with `apr.core.files.atomic_path`. Raises
    `CheckpointError` if the tokenizer does not fit the model.
    """
    check_tokenizer_fits(Path(tokenizer), len(cast(torch.Tensor, model.get_input_embeddings().weight)))
    directory = Path(directory)
    model.save_pretrained(directory)
    for path in tokenizer_files(Path(tokenizer)):
        copy = directory / path.relative_to(tokenizer)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
