"""Errors that a user can act on. The command line prints them as one line and exits with 2."""

from reprlib import Repr
from typing import Any

_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 1, 80, 80


def quoted(value: Any) -> str:
    """Returns a value as an error quotes it: its `repr`, cut where it is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not write integers of more than 4300 digits
        return "an endless number"


class AprError(Exception):
    """Base of every error whose message alone tells the user what is wrong and what is allowed, in one line
    whatever it quotes."""

    def __str__(self) -> str:
        return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in super().__str__())


class ParamsError(AprError):
    """A parameter is unknown, of the wrong type, out of range, or in conflict with another."""


class DataError(AprError):
    """An input file is missing, truncated, or does not hold what its reader needs."""


class CheckpointError(AprError):
    """A model directory is incomplete, or its tokenizer does not fit its weights or the grammar."""


class ServerError(AprError):
    """A decoding server is lost, or refuses what it is asked for."""
