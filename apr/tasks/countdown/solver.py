"""The symbolic solvers SoS, SoS+ and APR (paper, section 3.2), which write down what they do: `search.c`."""

import ctypes
from array import array
from functools import cache, lru_cache
from itertools import chain, takewhile
from pathlib import Path
from random import Random
from typing import get_args

import numpy as np

from apr.core.compiled import load_library
from apr.core.errors import DataError
from apr.language import Language
from apr.tasks.countdown.problem import Problem
from apr.tasks.countdown.settings import Heuristic, Solver
from apr.tasks.task import Trace, TraceThread, children_of

SOURCE = Path(__file__).with_name("search.c")
WORDS = ("<root>", "<child>", "go", "list", "goto", "spawn", "run", "joined", "resume", "join", "answer",
         "none", ",", "end", "+", "-", "*", "/", "=", "<", "!", ">")  # fmt: skip
"""In the order of the enum in `search.c`."""
DEPTH, COUNT = -100, -200
HEURISTICS = get_args(Heuristic)
"""In the order of the enum in `search.c`, as WORDS are."""
LEAST, ONE = 300, 1000
"""What is written is from -LEAST on; numbers below ONE are looked up many at a time."""
NO_BOUND = 2**63 - 1
ATTEMPTS = 200
"""Traces drawn at most for one with the children that were asked for."""
INT, SHARE = ctypes.c_int64, ctypes.c_double
UNIFORM = ctypes.CFUNCTYPE(SHARE)


class _Settings(ctypes.Structure):
    _fields_ = [
        *((name, INT) for name in ("beam", "child_beam", "best_first", "depth", "spawn_depth", "heuristic")),
        ("max_value", INT),
        *((name, SHARE) for name in ("promising", "child_promising")),
    ]


class _Vector(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", INT), ("capacity", INT)]

    def read(self, width: int = 1) -> np.ndarray:
        """Returns its integers, of which an element has so many."""
        return np.frombuffer(ctypes.string_at(self.data or 0, 8 * width * self.size), np.int64)


class _Text(ctypes.Structure):
    _fields_ = [("words", _Vector), ("ends", _Vector)]


class _Level(ctypes.Structure):
    _fields_ = [("text", _Text), ("marks", _Vector)]


@cache
def load_search() -> ctypes.CDLL:
    """Compiles it, if it has not been yet. Raises `AprError` where there is no compiler."""
    functions = {"apr_search": (ctypes.c_void_p,) * 2 + (INT,) * 2 + (UNIFORM,)}
    return load_library(SOURCE, functions, results={"apr_search": ctypes.POINTER(_Level)})


class _Said(dict[int, list[int]]):
    """What `search.c` writes, as token ids of a language."""

    def __init__(self, language: Language):
        self._vocabulary = language.vocabulary
        known = [self._one(written) for written in range(-LEAST, ONE)]
        self._known = np.array(known[LEAST:] + known[:LEAST])
        """The token of each written integer, negative ones at the end; -1 where it has not exactly one."""

    def _one(self, written: int) -> int:
        try:
            ids = self[written]
        except (DataError, IndexError):  # no word of this language, or none at all
            return -1
        return ids[0] if len(ids) == 1 else -1

    def __missing__(self, written: int) -> list[int]:
        if written >= 0:
            return self._vocabulary.number(written)
        word = WORDS[~written] if written > DEPTH else f":{DEPTH - written}"
        word = word if written > COUNT else f"#{COUNT - written}"
        if word not in self._vocabulary.ids:
            raise DataError(f"{word!r}: no word of this language; allowed: spawns of fewer threads")
        return self.setdefault(written, [self._vocabulary.ids[word]])

    def text(self, text: _Text) -> tuple[np.ndarray, np.ndarray]:
        """Returns its token ids, and where steps end in them."""
        words, steps = text.words.read(), text.ends.read()
        if words.max(initial=0) < ONE and (ids := self._known[words]).min(initial=0) >= 0:
            return ids, steps
        pieces = [self[written] for written in words.tolist()]
        ends = np.cumsum([0, *map(len, pieces)])
        return np.array(list(chain.from_iterable(pieces)), int), ends[steps]


_said = lru_cache(8)(_Said)  # of a process's languages


def solve(language: Language, problem: Problem, method: Solver, max_value: int | None, rng: Random) -> Trace:
    """Returns a random trace of the solver of `method` on `problem`."""
    middle = method.middle_share > 0 and rng.random() < method.middle_share
    beam = sum(method.beam) // 2 if middle else rng.randint(*method.beam)
    settings = _Settings(
        beam, beam, method.solver != "sos", 0, method.spawn_depth, HEURISTICS.index(method.heuristic),
        min(max_value or NO_BOUND, method.max_value or NO_BOUND), method.promising, method.child_promising,
    )  # fmt: skip
    if method.solver == "sos":
        settings.promising = rng.random() < 0.5
    elif method.solver == "apr":
        settings.depth = method.depth
        own = method.child_beam
        settings.child_beam = rng.randint(*(own if isinstance(own, tuple) else (beam, max(beam, own))))
    numbers = array("q", problem.numbers)
    levels = load_search().apr_search(
        ctypes.byref(settings), numbers.buffer_info()[0], len(numbers), problem.target, UNIFORM(rng.random)
    )
    threads, above, said = list[TraceThread](), 0, _said(language)
    reached = (levels[nested] for nested in range(settings.depth + 1))
    for level in takewhile(lambda level: level.marks.size, reached):
        (ids, ends), first, start, born = said.text(level.text), 0, 0, len(threads)
        for parent, _, last, solved in level.marks.read(4).reshape(-1, 4).tolist():
            end, place = ends[last - 1], parent if parent < 0 else above + parent
            steps = (ends[first:last] - start).tolist()
            threads.append(TraceThread(place, ids[start:end].tolist(), steps, bool(solved)))
            first, start = last, end
        above = born
    return threads


def solve_given(
    language: Language, problem: Problem, method: Solver, max_value: int | None, rng: Random, wanted: int
) -> Trace:
    """Returns a trace of the solver given that it `wanted` so many children, by rejection.

    The root's children, that is: who spawns below is asked for nothing. Of a problem that never has that
    many, or not in `ATTEMPTS` draws, the trace with the closest number (the smaller of two). Where only the
    root's first node can spawn, beams that cannot give the number are not tried: its children are then the
    node's successors, if it has two, or none.
    """

    def draw(beam: int, rng: Random, **update: float) -> Trace:
        chosen = method.model_copy(update={"beam": (beam, beam), **update})
        return solve(language, problem, chosen, max_value, rng)

    beams, asked = list(range(method.beam[0], method.beam[1] + 1)), wanted
    if method.spawn_depth == 0:
        most = children_of(draw(beams[-1], Random(0), promising=1.0, depth=1))
        widths = {beam: min(beam, most) if min(beam, most) >= 2 else 0 for beam in beams}
        wanted = min({0, *widths.values()}, key=lambda width: (abs(width - asked), width))
        beams = [beam for beam in beams if wanted in (0, widths[beam])]
    drawn: list[Trace] = []
    while len(drawn) < ATTEMPTS and (not drawn or children_of(drawn[-1]) != wanted):
        drawn.append(draw(rng.choice(beams), rng))
    return min(drawn, key=lambda trace: (abs(children_of(trace) - wanted), children_of(trace)))
