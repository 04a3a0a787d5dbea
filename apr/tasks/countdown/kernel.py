"""Runs `search.c`: the traces of many problems at once, token for token those of the solvers in Python."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from apr.core.compiled import load_library
from apr.core.params import Params
from apr.core.seeds import derive_seed
from apr.language import Language
from apr.tasks.countdown import Problem

SOURCE = Path(__file__).with_name("search.c")
WORDS = ("<root>", "<child>", "go", "tokens", "children", "list", "goto", "spawn", "run", "joined", "resume",
         "join", "answer", "none", ",", "end", "+", "-", "*", "/", "=", "<", "!", ">")  # fmt: skip
"""In the order of the enum in `search.c`; the ten digits follow."""
TABLED = 10_000
"""Numbers below this are looked up; a larger one is `number(n // 10)` and a digit, or else left to Python."""
SOLVERS = ("sos", "sos_plus", "apr")
INT, SHARE, ARRAY = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
ROW = np.dtype([(name, np.int64) for name in
                ("problem", "thread", "parent", "length", "solved", "children", "amount")])  # fmt: skip
"""One thread; `amount` is -1 without a condition."""


class _Settings(ctypes.Structure):
    _fields_ = [
        *((name, INT) for name in (
            "solver", "beam_low", "beam_high", "child_beam", "spawn_depth", "candidates", "only_solved",
            "multiply", "max_value", "window", "token_step", "max_children", "depths", "messages", "tabled",
        )),
        *((name, SHARE) for name in ("promising", "child_promising", "condition_share", "cut_share")),
        *((name, ARRAY) for name in ("words", "depth_ids", "message_ids", "number_ids", "number_starts")),
    ]  # fmt: skip


class _Vector(ctypes.Structure):
    _fields_ = [("data", ARRAY), ("size", INT), ("capacity", INT)]

    def copy(self, dtype: np.dtype | type) -> np.ndarray:
        return np.frombuffer(ctypes.string_at(self.data, self.size * np.dtype(dtype).itemsize), dtype)


class _Output(ctypes.Structure):
    _fields_ = [("ids", _Vector), ("mask", _Vector), ("rows", _Vector)]


@cache
def load_search() -> ctypes.CDLL | None:
    """The library; None, with a warning, where it cannot be compiled or loaded."""
    functions = {"apr_traces": (ARRAY, INT, *(ARRAY,) * 6), "apr_free": (ARRAY,)}
    return load_library(SOURCE, functions, "making traces")


class Tables:
    """The token ids of a language as arrays, by the names that `_Settings` has for them."""

    def __init__(self, language: Language):
        vocabulary = language.vocabulary
        tabled = max(TABLED, getattr(vocabulary, "number_tokens", 0) + 1)  # every number that is one token
        numbers = [vocabulary.number(value) for value in range(tabled)]
        words = [vocabulary.ids[word] for word in WORDS]
        digits = [vocabulary.ids.get(f"##{digit}", -1) for digit in range(10)]
        counts = [vocabulary.ids[f"#{count}"] for count in range(1, vocabulary.messages + 1)]
        ids = {"words": words + digits, "depth_ids": vocabulary.depth_ids, "message_ids": counts,
               "number_ids": [token for number in numbers for token in number]}  # fmt: skip
        self.arrays = {name: np.array(values, np.int32) for name, values in ids.items()}
        self.arrays["number_starts"] = np.cumsum([0, *map(len, numbers)], dtype=np.int64)
        self.sizes = {"depths": vocabulary.depths, "messages": vocabulary.messages, "tabled": tabled}


def _settings(name: str, params: Params, tables: Tables) -> _Settings:
    method, grammar = params.traces.methods[name], params.grammar
    values = method.model_dump() | grammar.model_dump() | tables.sizes
    largest = params.problems.max_value
    values |= {
        "solver": SOLVERS.index(method.solver), "multiply": method.heuristic == "multiply",
        "beam_low": method.beam[0], "beam_high": method.beam[1],
        "max_value": np.iinfo(np.int64).max if largest is None else largest,
    }  # fmt: skip
    values |= {name: array.ctypes.data for name, array in tables.arrays.items()}
    return _Settings(**{field[0]: values[field[0]] for field in _Settings._fields_})


def search(
    problems: Sequence[Problem], name: str, params: Params, tables: Tables
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """The threads that `trace_rows` makes of `problems`, in order: a `ROW` each, token ids, loss mask.

    Last the indices of the problems that are left to it: all, without a library.
    """
    library = load_search()
    if library is None:
        return np.empty(0, ROW), np.empty(0, np.int32), np.empty(0, bool), list(range(len(problems)))
    starts = np.cumsum([0, *(len(problem.numbers) for problem in problems)], dtype=np.int64)
    numbers = np.array([number for problem in problems for number in problem.numbers], np.int64)
    targets = np.array([problem.target for problem in problems], np.int64)
    seeds = np.array([derive_seed(params.seed, use, name, problem.id)
                      for problem in problems for use in ("trace", "condition")], np.uint64)  # fmt: skip
    left, output = np.zeros(len(problems), np.uint8), _Output()
    given = [array.ctypes.data for array in (starts, numbers, targets, seeds, left)]
    settings = _settings(name, params, tables)
    library.apr_traces(ctypes.byref(settings), len(problems), *given, ctypes.byref(output))
    try:
        rows, ids, mask = output.rows.copy(ROW), output.ids.copy(np.int32), output.mask.copy(bool)
    finally:
        library.apr_free(ctypes.byref(output))
    return rows, ids, mask, np.flatnonzero(left).tolist()
