"""The language as a tokenizer of `transformers`, saved beside every checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from apr.core.errors import CheckpointError, quoted
from apr.core.files import write_json
from apr.core.model_files import first_line, read_config, read_object
from apr.language.language import Language
from apr.language.pretrained import PretrainedVocabulary, missing_words, new_token
from apr.language.vocabulary import CONTROL, Vocabulary

if TYPE_CHECKING:  # it imports torch, which a process that makes traces does without
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

LANGUAGE_FILE = "thread_language.json"
"""What the vocabulary is built from (`settings`); the words of a pretrained model's have `rows`."""
LARGEST = 10**6
"""Of those that are numbers of tokens."""


def build_tokenizer(vocabulary: Vocabulary) -> "PreTrainedTokenizerFast":
    """A tokenizer with exactly the ids of `vocabulary`: `encode(text)` equals `vocabulary.encode(text)`."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.WordPiece(vocab=dict(vocabulary.ids), unk_token="<unk>", continuing_subword_prefix="##")
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


def extend_tokenizer(base: Path, task: Sequence[str], messages: int) -> Language:
    """The language over the tokenizer of the pretrained model in `base`, to which it adds the words it lacks.

    If `base` has a language already, that is it. Raises `CheckpointError`.
    """
    if (base / LANGUAGE_FILE).is_file():
        return load_language(base)
    tokenizer = _read_tokenizer(base)
    tokenizer.add_tokens(
        [new_token(word) for word in missing_words(tokenizer, task, messages)], special_tokens=True
    )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or new_token("end")
    rows = read_config(base).get_text_config().vocab_size  # may be padded beyond the tokens
    rows = max(rows, 1 + max(tokenizer.get_vocab().values()))
    return Language(PretrainedVocabulary(tokenizer, task, messages, rows))


def save_tokenizer(language: Language, directory: Path) -> None:
    """Writes the tokenizer's files and the settings it was built from into an existing directory."""
    vocabulary = language.vocabulary
    own = build_tokenizer(vocabulary) if isinstance(vocabulary, Vocabulary) else None
    (own or cast(PretrainedVocabulary, vocabulary).tokenizer).save_pretrained(directory)
    write_json(Path(directory) / LANGUAGE_FILE, vocabulary.settings)


def load_language(directory: str | Path) -> Language:
    """The language saved in a tokenizer or checkpoint directory.

    Raises `CheckpointError` if the tokenizer is missing or its ids are not those of this grammar.
    """
    directory = Path(directory)
    for name in (LANGUAGE_FILE, "tokenizer.json"):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: no tokenizer here ({name} is missing)")
    settings = read_object(directory / LANGUAGE_FILE)
    names = ("rows" if (rows := settings.get("rows")) is not None else "number_tokens", "messages")
    words, numbers = settings.get("task"), [value for name, value in settings.items() if name != "task"]
    if (
        {*settings} != {*names, "task"}
        or not (isinstance(words, list) and all(str(word).split() == [word] for word in words))
        or not all(type(number) is int and 0 < number <= LARGEST for number in numbers)
    ):
        raise CheckpointError(f"{directory / LANGUAGE_FILE}: {quoted(settings)} is not allowed; allowed: "
                              f"{', '.join(names)}, from 1 to {LARGEST}, and task, a list of words")
    if rows is not None:
        return Language(PretrainedVocabulary(_read_tokenizer(directory), **settings))
    language = Language(Vocabulary(**settings))
    model = read_object(directory / "tokenizer.json").get("model")
    if not isinstance(model, dict) or model.get("vocab") != language.vocabulary.ids:
        raise CheckpointError(f"{directory}: the tokenizer's ids are not those of the thread language")
    return language


def _read_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # whatever the library meets in somebody else's files
        raise CheckpointError(f"{directory}: tokenizer not readable ({first_line(error)})") from None
