"""The language as a `PreTrainedTokenizerFast`, saved beside every checkpoint."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from apr.core.errors import CheckpointError
from apr.core.files import atomic_path, read_json, write_json
from apr.core.params import Params
from apr.grammar.language import Language, build_language
from apr.grammar.vocabulary import CONTROL, Vocabulary

LANGUAGE_FILE = "thread_language.json"
SETTINGS = ("number_tokens", "depths", "messages")
"""What a vocabulary is built from."""


def build_tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """A tokenizer with exactly the ids of `vocabulary`: `encode(text)` equals `vocabulary.encode(text)`."""
    tokenizer = Tokenizer(
        models.WordPiece(vocab=vocabulary.ids, unk_token="<unk>", continuing_subword_prefix="##")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<root>",
        eos_token="end",
        additional_special_tokens=[word for word in CONTROL if word.startswith("<")][3:],
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(language: Language, directory: Path) -> None:
    """Writes the tokenizer's files and the settings it was built from into an existing directory."""
    build_tokenizer(language.vocabulary).save_pretrained(directory)
    vocabulary = language.vocabulary
    settings = {name: getattr(vocabulary, name) for name in SETTINGS}
    write_json(Path(directory) / LANGUAGE_FILE, settings)


def load_language(directory: str | Path) -> Language:
    """The language saved in a tokenizer or checkpoint directory.

    Raises `CheckpointError` if the tokenizer is missing or its ids are not those of this grammar.
    """
    directory = Path(directory)
    for name in (LANGUAGE_FILE, "tokenizer.json"):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: no tokenizer here ({name} is missing)")
    settings = read_json(directory / LANGUAGE_FILE)
    try:
        language = Language(Vocabulary(**{name: int(settings[name]) for name in SETTINGS}))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{directory / LANGUAGE_FILE}: not a thread language ({error!r})") from None
    vocab = read_json(directory / "tokenizer.json").get("model", {}).get("vocab")
    if vocab != language.vocabulary.ids:
        raise CheckpointError(f"{directory}: the tokenizer's ids are not those of the thread language")
    return language


def make_tokenizer(params: Params, out: Path) -> None:
    """Writes the tokenizer directory of these parameters."""
    with atomic_path(out) as partial:
        partial.mkdir()
        save_tokenizer(build_language(params.grammar, params.problems), partial)
