"""What stands on a command line, read as settings are, and refused in one line."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from pydantic import ConfigDict, TypeAdapter, ValidationError

from apr.core.errors import ParamsError, quoted


class Parser(argparse.ArgumentParser):
    """Raises `ParamsError` for what it does not know, where argparse prints all that it does."""

    def error(self, message: str) -> NoReturn:
        raise ParamsError(f"{message} (`{self.prog} --help`)")


def typed(annotation: Any) -> Callable[[str], Any]:
    """Returns the `type` of an argument that is read as one of the types of `core.settings`."""
    adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))

    def read(text: str) -> Any:
        try:
            return adapter.validate_strings(text)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise argparse.ArgumentTypeError(f"{quoted(text)} is not allowed; {said}") from None

    return read
