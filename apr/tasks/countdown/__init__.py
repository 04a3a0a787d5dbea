"""Countdown: reach the target with every number exactly once (paper, section 4.1)."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, cast

from apr.language import Condition, Malformed
from apr.tasks.countdown.label import label
from apr.tasks.countdown.problem import (
    PROBLEM_SCHEMA,
    Problem,
    draw_problem,
    problem_of_row,
    problem_of_text,
)
from apr.tasks.countdown.settings import CountdownProblems, Solver
from apr.tasks.countdown.solver import solve, solve_given
from apr.tasks.countdown.verify import expression, verify
from apr.tasks.countdown.words import read_answer, require_depths, words_of
from apr.tasks.task import Label, Task, Trace, Verdict


class Countdown(Task):
    Settings = CountdownProblems
    Method = Solver
    schema = PROBLEM_SCHEMA
    word_keys = "problems.numbers"
    solver_keys = f"{word_keys} problems.max_value"
    needs = "any"

    @property
    def settings(self) -> CountdownProblems:
        return cast(CountdownProblems, self.params.problems)

    def words(self) -> Sequence[str]:
        return words_of(self.settings.numbers)

    def draw(self, name: str, rng: Random, taken: set[Any]) -> Problem:
        return draw_problem(self.settings, name, rng, taken)

    def row(self, problem: Problem) -> tuple[Any, ...]:
        return problem.id, problem.numbers, problem.target

    def problem(self, row: Mapping[str, Any]) -> Problem:
        return problem_of_row(row)

    def read(self, text: str) -> Problem:
        return problem_of_text(text)

    def prompt(self, problem: Problem, condition: Condition | None = None) -> list[int]:
        vocabulary = self.language.vocabulary
        require_depths(vocabulary, problem.numbers)
        numbers = [token for number in problem.numbers for token in vocabulary.number(number)]
        said = [*vocabulary.number(problem.target), vocabulary.ids[":0"], *numbers]
        return self.language.syntax.prompt(said, condition)

    def demonstrate(
        self, problem: Problem, method: Solver, rng: Random, children: int | None = None
    ) -> Trace:
        require_depths(self.language.vocabulary, problem.numbers)
        given = self.language, problem, method, self.settings.max_value, rng
        return solve(*given) if children is None else solve_given(*given, children)

    def verify(self, problem: Problem, ids: Sequence[int]) -> Verdict | Malformed:
        answer = read_answer(self.language.vocabulary, ids)
        if isinstance(answer, Malformed):
            return answer
        if answer is None:
            return Verdict(False, False, "declares no solution")
        text = ", ".join(f"{left} {op} {right} = {result}" for left, op, right, result in answer)
        return verify(problem, answer)._replace(answer=text, expression=expression(answer))

    def label(self, problem: Problem, prompt: Sequence[int], returned: Sequence[int] | None) -> Label:
        return label(self.language.vocabulary, problem, prompt, returned)


TASK = Countdown
