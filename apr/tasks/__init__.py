"""Tasks, a folder each, chosen by name in the parameters. May import `core`, `language`."""

from pathlib import Path

from apr.core.errors import CheckpointError
from apr.core.files import atomic_path
from apr.core.model_files import check_window, read_config
from apr.core.params import Params, task_class
from apr.language import Language
from apr.language.tokenizer import extend_tokenizer, save_tokenizer
from apr.tasks.task import Task


def open_task(params: Params, language: Language | None = None) -> Task:
    """Returns the task of the parameters, in a `language` or in that of this project's own tokens."""
    return task_class(params.task)(params, language)


def make_tokenizer(params: Params, out: Path) -> None:
    """Writes the tokenizer directory of these parameters: of `sft.base`, if there is one.

    Raises `CheckpointError` if it is no model, sees less than a window, or has a thread language of other
    settings.
    """
    language = open_task(params).language
    if params.sft.base is not None:
        wanted, base = language.vocabulary.settings, Path(params.sft.base)
        check_window(base, read_config(base), params.grammar.window)  # before traces are made for it
        language = extend_tokenizer(base, wanted["task"], wanted["messages"])
        for name, value in language.vocabulary.settings.items():
            if value != wanted.get(name, value):
                has, asked = (its if isinstance(its, int) else " ".join(its) for its in (value, wanted[name]))
                raise CheckpointError(f"{params.sft.base}: its thread language has {name} {has}; allowed: "
                                      f"{asked}, as grammar and problems say")
    with atomic_path(out) as partial:
        partial.mkdir()
        save_tokenizer(language, partial)
