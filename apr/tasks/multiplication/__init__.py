"""Multiplication of two numbers: each child makes one partial product, and the sum needs all of them."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, cast

from apr.language import Condition, Malformed
from apr.tasks.multiplication.problem import (
    PROBLEM_SCHEMA,
    Problem,
    digits_of,
    draw_problem,
    number_of,
    problem_of,
    problem_of_text,
)
from apr.tasks.multiplication.settings import MultiplicationProblems, Solver
from apr.tasks.multiplication.solver import chosen, solve
from apr.tasks.task import NOTHING_KNOWN, Label, Task, Trace, Verdict


class Multiplication(Task):
    Settings = MultiplicationProblems
    Method = Solver
    schema = PROBLEM_SCHEMA
    needs = "all"

    def words(self) -> Sequence[str]:
        return "*", "=", "+"

    def draw(self, name: str, rng: Random, taken: set[Any]) -> Problem:
        return draw_problem(cast(MultiplicationProblems, self.params.problems), name, rng, taken)

    def row(self, problem: Problem) -> tuple[Any, ...]:
        return problem

    def problem(self, row: Mapping[str, Any]) -> Problem:
        return problem_of(row["problem_id"], row["left"], row["right"])

    def read(self, text: str) -> Problem:
        return problem_of_text(text)

    def prompt(self, problem: Problem, condition: Condition | None = None) -> list[int]:
        left, right = (digits_of(number, problem.size) for number in (problem.left, problem.right))
        sign = self.language.vocabulary.ids["*"]
        return self.language.syntax.prompt([*self._say(left), sign, *self._say(right)], condition)

    def demonstrate(
        self, problem: Problem, method: Solver, rng: Random, children: int | None = None
    ) -> Trace:
        return solve(self.language, problem, self.prompt(problem), chosen(problem, method, rng, children))

    def verify(self, problem: Problem, ids: Sequence[int]) -> Verdict | Malformed:
        """Strict: the last `answer` is the product's digits, as many as both numbers have. Lenient: with too
        many or too few noughts."""
        word, end = (self.language.vocabulary.ids[name] for name in ("answer", "end"))
        start = next((place for place in range(len(ids) - 1, -1, -1) if ids[place] == word), None)
        if start is None or ids[-1] != end:
            return Malformed(len(ids), "no answer")
        if (written := list(ids[start + 1 : -1])) == self.language.syntax.nothing:
            return Verdict(False, False, "declares no solution")
        if not (digits := self._read(written)):
            return Malformed(start + 1, "expected digits")
        product, found = problem.left * problem.right, number_of(digits)
        strict = digits == digits_of(product, 2 * problem.size)
        wrong = "too many or too few noughts" if found == product else f"answer is {found}, not {product}"
        said = " ".join(map(str, digits))
        return Verdict(strict, found == product, "solved" if strict else wrong, said, str(found))

    def label(self, problem: Problem, prompt: Sequence[int], returned: Sequence[int] | None) -> Label:
        """Every message can be done that says a number, and a digit behind noughts to multiply it with."""
        sign = self.language.vocabulary.ids["*"]
        factors = prompt[1:-1]
        if list(factors).count(sign) != 1:
            return NOTHING_KNOWN
        cut = list(factors).index(sign)
        left, right = self._read(factors[:cut]), self._read(factors[cut + 1 :])
        if not left or not right or any(right[:-1]) or len(right) > len(left):
            return NOTHING_KNOWN
        own = digits_of(problem.left, problem.size), digits_of(problem.right, problem.size)[len(right) - 1]
        product = digits_of(number_of(left) * number_of(right), 2 * len(left))
        right_ = returned is not None and self._read(returned) == product
        return Label(worth=(left, right[-1]) == own, solvable=True, right=right_)

    def _say(self, digits: Sequence[int]) -> list[int]:
        return [token for digit in digits for token in self.language.vocabulary.number(digit)]

    def _read(self, ids: Sequence[int]) -> list[int] | None:
        """The digits that the ids are, None if they are anything else."""
        digits, place = list[int](), 0
        while place < len(ids):
            found = self.language.vocabulary.read_number(ids, place)
            if found is None or found[0] > 9:
                return None
            digits.append(found[0])
            place = found[1]
        return digits


TASK = Multiplication
