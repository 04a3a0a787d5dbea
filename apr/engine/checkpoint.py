"""Checkpoints: plain Hugging Face directories with safetensors weights and their tokenizer beside them."""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import apr.engine.packed  # noqa: F401  (registers attention="packed")
from apr.core.errors import CheckpointError, DataError
from apr.core.files import read_json
from apr.core.params import Model

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "thread_language.json")


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU if there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def new_model(
    model: Model, vocabulary_size: int, pad: int, window: int, seed: int, attention: str = "sdpa"
) -> LlamaForCausalLM:
    """A Llama with random float32 weights that depend on `seed` and the shapes alone (section 4.1)."""
    config = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=vocabulary_size, hidden_size=model.hidden, intermediate_size=model.ffn,
        num_hidden_layers=model.layers, num_attention_heads=model.heads, num_key_value_heads=model.kv_heads,
        max_position_embeddings=window, tie_word_embeddings=model.tie_embeddings,
        pad_token_id=pad, bos_token_id=None, eos_token_id=None, attn_implementation=attention,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load_model(directory: str | Path, device: str = "auto", attention: str = "sdpa") -> PreTrainedModel:
    """The causal LM saved in `directory`, in evaluation mode, in the dtype it was saved in.

    Raises `CheckpointError` if the directory, its config or its safetensors weights are missing or broken,
    or if the tokenizer beside them is missing or does not fit.
    """
    directory = Path(directory)
    check_checkpoint(directory)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            attn_implementation=attention,
            dtype="auto",
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: weights not readable ({str(error).splitlines()[0]})") from None
    return model.to(resolve_device(device)).eval()  # type: ignore[arg-type]


def check_checkpoint(directory: Path) -> None:
    """Raises `CheckpointError` unless config, weights and a tokenizer that fits them are in `directory`."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory}: not a checkpoint (config.json is missing)")
    if not any(directory.glob("model*.safetensors")):
        raise CheckpointError(f"{directory}: not a checkpoint (model.safetensors is missing)")
    try:
        config = read_json(directory / "config.json")
        check_tokenizer_fits(directory, config.get("text_config", config).get("vocab_size"))
    except DataError as error:
        raise CheckpointError(str(error)) from None


def check_tokenizer_fits(directory: Path, vocabulary_size: int | None) -> None:
    """Raises `CheckpointError` unless the tokenizer in `directory` has ids below `vocabulary_size` only.

    Checkpoints may pad their embeddings, so more rows than tokens are fine where the thread language does
    not say how many there are; this project's own tokenizer has as many.
    """
    size, language = tokenizer_size(directory), directory / "thread_language.json"
    rows = read_json(language).get("rows", size) if language.is_file() else vocabulary_size
    if vocabulary_size is None or size > vocabulary_size or rows != vocabulary_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {size} tokens, the checkpoint's vocabulary {vocabulary_size}"
        )


def tokenizer_size(directory: Path) -> int:
    """Number of ids of the tokenizer in `directory`, added tokens included. Raises `CheckpointError`."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{directory}: no tokenizer here (tokenizer.json is missing)")
    try:
        content = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    vocab = content["model"]["vocab"]
    ids = list(vocab.values()) if isinstance(vocab, dict) else range(len(vocab))
    return 1 + max([*ids, *(token["id"] for token in content.get("added_tokens") or [])])


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


def save_checkpoint(model: PreTrainedModel, tokenizer: Path, directory: Path) -> None:
    """Writes the model as safetensors and the tokenizer files of directory `tokenizer` beside it.

    `directory` is made if needed; make it atomic with `apr.core.files.atomic_path`. Raises
    `CheckpointError` if the tokenizer does not fit the model.
    """
    check_tokenizer_fits(Path(tokenizer), len(cast(torch.Tensor, model.get_input_embeddings().weight)))
    directory = Path(directory)
    model.save_pretrained(directory)
    for pattern in TOKENIZER_FILES:
        for path in Path(tokenizer).glob(pattern):
            shutil.copyfile(path, directory / path.name)
