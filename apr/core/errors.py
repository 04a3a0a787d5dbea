"""Errors that a user can act on. The command line prints them as one line and exits with 2."""


class AprError(Exception):
    """Base of every error whose message alone tells the user what is wrong and what is allowed."""


class ParamsError(AprError):
    """A parameter is unknown, of the wrong type, out of range, or in conflict with another."""


class DataError(AprError):
    """An input file is missing, truncated, or does not hold what its reader needs."""


class CheckpointError(AprError):
    """A model directory is incomplete, or its tokenizer does not fit its weights or the grammar."""


class ServerError(AprError):
    """A decoding server is lost, or refuses what it is asked for."""
