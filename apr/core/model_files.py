"""Directories of Hugging Face models: which of their files are read, and whether they are what is wanted.

Nothing else in such a directory counts: no hidden file, document, subdirectory, weights in another format.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from apr.core.errors import CheckpointError, DataError
from apr.core.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "additional_chat_templates/*.jinja", "thread_language.json",
)  # fmt: skip
FOREIGN = ("quantization_config", "compression_config", "transformers_weights", "is_encoder_decoder")
"""Settings of `config.json` for weights that are quantised or have another name, and for two models."""


def tokenizer_files(directory: Path) -> list[Path]:
    """Returns the files of the tokenizer in `directory`, sorted."""
    return sorted({path for pattern in TOKENIZER_FILES for path in directory.glob(pattern) if path.is_file()})


def weight_files(directory: Path) -> list[Path]:
    """Returns `model.safetensors`, or without one the index of the weights and the files that it names."""
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return [whole]
    try:
        named = read_json(index)["weight_map"].values()
        return [index, *sorted({directory / name for name in named})]
    except (DataError, KeyError, TypeError, AttributeError):
        return [index]  # nobody can read more: loading it says why


def model_files(directory: Path, tokenizer_only: bool = False) -> list[Path]:
    """Returns the files of `directory` that a model and its tokenizer are read from, or the tokenizer alone
    (`config.json` says how many rows there are). A file that has to be there is named even if it is not.
    """
    tokenizer = [directory / "config.json", *tokenizer_files(directory)]
    return tokenizer if tokenizer_only else [*tokenizer, *weight_files(directory)]


def read_config(directory: Path) -> "PreTrainedConfig":
    """Returns the configuration of the causal LM in `directory`, without dropout: nothing is trained with it.

    Raises `CheckpointError` unless there are weights as safetensors, neither quantised nor adapters only, and
    a tokenizer that fits them.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    for path in (directory / "config.json", *weight_files(directory)):
        if not path.is_file():
            raise CheckpointError(f"{directory}: not a checkpoint ({path.name} is missing)")
    if (directory / "adapter_config.json").is_file():
        raise CheckpointError(f"{directory}: adapters (adapter_config.json) are not allowed; allowed: a "
                              "model that they are merged into")  # fmt: skip
    values = read_object(directory / "config.json")
    for key in FOREIGN:
        if values.get(key):
            raise CheckpointError(f"{directory}: {key} in config.json is not allowed; allowed: a causal LM "
                                  "in float32, bfloat16 or float16")  # fmt: skip
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        text = config.get_text_config()
        rows = text.vocab_size
    except Exception as error:  # whatever the library meets in somebody else's settings
        raise CheckpointError(f"{directory}: config.json not readable ({first_line(error)})") from None
    check_tokenizer_fits(directory, rows)
    for part in (config, text):
        if getattr(part, "output_router_logits", False):  # for a loss that is not computed here
            part.output_router_logits = False
        for name, value in part.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
    return config


def check_window(directory: Path, config: "PreTrainedConfig", window: int) -> None:
    """Raises `CheckpointError` unless every layer sees all of the `window` tokens that threads may have."""
    text = config.get_text_config()
    if kinds := set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise CheckpointError(f"{directory}: layers of type {', '.join(sorted(kinds))} are not allowed; "
                              "allowed: full_attention, sliding_attention")  # fmt: skip
    for name in ("max_position_embeddings", "sliding_window", "attention_chunk_size"):
        most = getattr(text, name, None)
        if most is not None and most < window:
            raise CheckpointError(f"{directory}: {name} {most} is not allowed; allowed: at least "
                                  f"grammar.window = {window}")  # fmt: skip


def check_tokenizer_fits(directory: Path, vocabulary_size: int | None) -> None:
    """Raises `CheckpointError` unless the tokenizer in `directory` has ids below `vocabulary_size` only.

    Checkpoints may pad their embeddings, so more rows than tokens are fine where the thread language does
    not say how many there are; this project's own tokenizer has as many.
    """
    path, language = directory / "tokenizer.json", directory / "thread_language.json"
    if not path.is_file():
        raise CheckpointError(f"{directory}: no tokenizer here (tokenizer.json is missing)")
    try:
        size = 1 + max(Tokenizer.from_file(str(path)).get_vocab().values())
    except Exception as error:  # the library has no errors of its own
        raise CheckpointError(f"{path}: not a tokenizer ({first_line(error)})") from None
    rows = read_object(language).get("rows", size) if language.is_file() else vocabulary_size
    if not isinstance(vocabulary_size, int) or size > vocabulary_size or rows != vocabulary_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {size} tokens, the checkpoint's vocabulary {vocabulary_size}"
        )


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in `path`. Raises `CheckpointError` if there is none."""
    try:
        value = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def first_line(error: Exception) -> str:
    """Returns what an error of a library says, in one line."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
