"""Long multiplication, written down: 37 × 42, with a child for each partial product.

    <root> 7 3 * 2 4 go spawn 7 3 * #2 2 #1 0 4 run joined 4 7 0 0 joined 0 8 4 1 resume
        + 4 15 5 1 answer 4 5 5 1 end
    <child> 7 3 * 2 go 14 7 0 0 join 4 7 0 0 end
    <child> 7 3 * 0 4 go 0 28 14 1 join 0 8 4 1 end

Numbers are written digit by digit, the last one first, so that no digit depends on those behind it. A partial
product, and the sum of all, is worked out place by place: what there is at a place, the carry of the place
before included, is one token; its last digit is that of the result, the others are the next carry. A serial
trace has `* 0 4 0 28 14 1 = 0 8 4 1` instead of each child.
"""

from collections.abc import Iterable, Sequence
from random import Random

from apr.language import Language
from apr.tasks.multiplication.problem import Problem, digits_of, number_of
from apr.tasks.multiplication.settings import Solver
from apr.tasks.task import Trace, TraceThread

Part = str | list[int]
"""Words, or numbers of one token each."""


class Writer:
    """The steps of a thread as token ids, the first of them its prompt."""

    def __init__(self, language: Language, prompt: Sequence[int]):
        self._vocabulary, self.ids, self.ends = language.vocabulary, list(prompt), [len(prompt)]

    def step(self, *parts: Part) -> None:
        for part in parts:
            if isinstance(part, str):
                self.ids += self._vocabulary.encode(part)
            else:
                self.ids += [token for number in part for token in self._vocabulary.number(number)]
        self.ends.append(len(self.ids))


def carried(places: Iterable[int]) -> list[int]:
    """Returns what there is at each place with the carry of the place before."""
    found, carry = [], 0
    for value in places:
        found.append(value + carry)
        carry = found[-1] // 10
    return found


def partial(problem: Problem, place: int) -> tuple[list[int], list[int], list[int]]:
    """Returns what a digit of the second number is where it stands; what there is at each place of the first
    number's product with it; and that product."""
    digit = problem.right // 10**place % 10
    products = [digit * each for each in digits_of(problem.left, problem.size)]
    worked = carried([*[0] * place, *products, *[0] * (problem.size - place)])
    return [*[0] * place, digit], worked, [value % 10 for value in worked]


def solve(language: Language, problem: Problem, prompt: Sequence[int], spawns: bool) -> Trace:
    """Returns the trace whose root is prompted so, with a child for each digit or without any."""
    size, left = problem.size, digits_of(problem.left, problem.size)
    parts = [partial(problem, place) for place in range(size)]
    root, children = Writer(language, prompt), list[TraceThread]()
    if spawns:
        messages, joined = list[Part](), list[Part]()
        for place, (factor, _, product) in enumerate(parts):
            messages += [f"#{size - place}", factor]
            joined += ["joined", product]
        root.step("spawn", left, "*", *messages, "run")
        root.step(*joined, "resume")
    for factor, worked, product in parts:
        if spawns:
            message = Writer(language, [])
            message.step(left, "*", factor)
            child = Writer(language, language.syntax.child_prompt(message.ids))
            child.step(worked)
            child.step("join", product, "end")
            children.append(TraceThread(0, child.ids, child.ends, True))
        else:
            root.step("*", factor, worked, "=", product)
    columns = carried(sum(column) for column in zip(*(product for *_, product in parts), strict=True))
    root.step("+", columns)
    root.step("answer", [value % 10 for value in columns], "end")
    assert number_of([value % 10 for value in columns]) == problem.left * problem.right
    return [TraceThread(-1, root.ids, root.ends, True), *children]


def chosen(problem: Problem, method: Solver, rng: Random, asked: int | None) -> bool:
    """Whether children are spawned: at random, or where that is nearer to the number that is asked for."""
    if problem.size > method.children:
        return False
    return rng.random() < method.promising if asked is None else 2 * asked > problem.size
