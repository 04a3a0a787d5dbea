"""Which files of a Hugging Face model's directory are read; nothing else in it counts."""

from pathlib import Path

from apr.core.errors import DataError
from apr.core.files import read_json

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "additional_chat_templates/*.jinja", "thread_language.json",
)  # fmt: skip


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
    (`config.json` says how many rows there are).

    These are the configurations, the weights and the tokenizer; not hidden files, subdirectories, documents,
    weights in other formats. A file that has to be there is named even if it is not.
    """
    tokenizer = [directory / "config.json", *tokenizer_files(directory)]
    if tokenizer_only:
        return tokenizer
    generation = [path for path in [directory / "generation_config.json"] if path.is_file()]
    return [*tokenizer, *generation, *weight_files(directory)]
