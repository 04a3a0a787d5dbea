"""A task as small as they come: is a number even? A parallel solver asks one child for each answer."""

from typing import NamedTuple

import pyarrow as pa

from apr.core.errors import DataError, ParamsError
from apr.core.params import Problems, TraceMethod
from apr.core.settings import Positive
from apr.language import Malformed
from apr.tasks.task import Task, TraceThread, Verdict


class Parity(NamedTuple):
    id: str
    number: int

    def __str__(self):
        return f"{self.number}?"


class Settings(Problems):
    most: Positive = 999

    def __str__(self):
        return f"numbers up to {self.most}"


class Method(TraceMethod):
    parallel: bool = False

    @property
    def spawns(self):
        return 2 if self.parallel else 0


class Toy(Task):
    Settings = Settings
    Method = Method
    schema = pa.schema({"problem_id": pa.string(), "number": pa.int32()})

    def words(self):
        return "even", "odd", "ask"

    def draw(self, name, rng, taken):
        left = sorted(set(range(self.params.problems.most + 1)) - taken)
        if not left:
            raise ParamsError("problems: no number is left; allowed: fewer problems, or larger most")
        taken.add(number := rng.choice(left))
        return Parity(name, number)

    def row(self, problem):
        return problem

    def problem(self, row):
        if row["number"] is None or row["number"] < 0:
            raise DataError("is no natural number")
        return Parity(row["problem_id"], row["number"])

    def read(self, text):
        if not text.strip().isdecimal():
            raise DataError(f"{text!r}: not a natural number")
        return Parity("problem", int(text))

    def prompt(self, problem, condition=None):
        return self.language.syntax.prompt(self.language.vocabulary.number(problem.number), condition)

    def demonstrate(self, problem, method, rng, children=None):
        number, right = problem.number, ("even", "odd")[problem.number % 2]
        spawns = method.parallel and (rng.random() < 0.8 if children is None else children > 0)
        root = [f"<root> {number} go"]
        if spawns:
            root += [f"spawn #2 even {number} #1 odd {number} run", "joined even joined none resume"
                     if right == "even" else "joined none joined odd resume"]  # fmt: skip
        else:
            root += [f"ask {word}" for word in ("even", "odd") if word != right]
        said = [root + [f"answer {right} end"]]
        for word in ("even", "odd") if spawns else ():
            said.append([f"<child> {word} {number} go", f"join {word if word == right else 'none'} end"])
        return [self._thread(place, steps, right) for place, steps in enumerate(said)]

    def _thread(self, place, steps, right):
        ids, ends = [], []
        for step in steps:
            ids += self.language.vocabulary.encode(step)
            ends.append(len(ids))
        return TraceThread(min(place, 1) - 1, ids, ends, right in steps[-1])

    def verify(self, problem, ids):
        said = self.language.vocabulary.decode(ids).rpartition("answer ")[2].removesuffix(" end")
        if said == "none":
            return Verdict(False, False, "declares no solution")
        if said not in ("even", "odd"):
            return Malformed(len(ids) - 1, "expected even or odd")
        right = said == ("even", "odd")[problem.number % 2]
        return Verdict(right, right, "solved" if right else "the other", said, said)


TASK = Toy
