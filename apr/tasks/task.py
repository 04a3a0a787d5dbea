"""What a task is: all that the project asks of it. Its module has the class under the name `TASK`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from random import Random
from typing import Any, ClassVar, Literal, NamedTuple

from pyarrow import Schema

from apr.core.params import Params, Problems, TraceMethod
from apr.language import Condition, Language, Malformed, Vocabulary

Problem = Any
"""Whatever the task takes for one; it has an `id`, and `str` is how people read it."""


class Verdict(NamedTuple):
    """`strict` counts; `lenient` may forgive more, for comparison only. `answer` is the model's, None if it
    declares no solution; answers of one `expression` are one in a vote (cons@n)."""

    strict: bool
    lenient: bool
    reason: str
    answer: str | None = None
    expression: str | None = None


class Label(NamedTuple):
    """What is known for certain of a child, whatever became of its rollout."""

    worth: bool
    """Its message was worth sending: what it asks for follows from the problem, can be done, and helps."""
    solvable: bool
    """What its message asks for can be done, whether it follows from the problem or not."""
    right: bool
    """It returned what its message asks for, or "none" where that cannot be done."""


NOTHING_KNOWN = Label(worth=False, solvable=False, right=False)
"""Of a child whose message is no sub-problem."""


class TraceThread(NamedTuple):
    """Its `parent` is -1 for the root; its steps end at `ends` in `ids`, the first of them is the prompt."""

    parent: int
    ids: list[int]
    ends: list[int]
    solved: bool


Trace = list[TraceThread]
"""A solver's demonstration: the root, prompted without a condition, then its children as they are spawned,
then theirs, level by level."""


def children_of(trace: Trace) -> int:
    """Returns how many threads the root of a trace spawns: what a condition on children counts."""
    return sum(thread.parent == 0 for thread in trace)


class Task(ABC):
    """The task of given parameters, of which it reads `problems`: to draw, to demonstrate, for its words."""

    Settings: ClassVar[type[Problems]]
    """The section `problems`: sizes of splits, and what else there is to say of problems."""
    Method: ClassVar[type[TraceMethod]]
    """An entry of `traces.methods`: what any task's traces can be told, and what its solver can."""
    schema: ClassVar[Schema]
    """Columns of a file of problems, `problem_id` first."""
    word_keys: ClassVar[str] = ""
    """What `words` reads of the parameters but `grammar`: dotted keys, as a job's recipe has to name them."""
    solver_keys: ClassVar[str] = ""
    """And what `demonstrate` does, `words` included."""
    needs: ClassVar[Literal["any", "all"] | None] = None
    """How many of its children a parent needs to be right: one, or all that were worth asking. None where
    nothing is known of children: there is no `label` then."""

    def __init__(self, params: Params, language: Language | None = None):
        self.params = params
        if language is not None:
            self.language = language

    @cached_property
    def language(self) -> Language:
        """That of the model that is spoken to; else in this project's own tokens."""
        grammar = self.params.grammar
        words = [*self.words(), *["devices"] * grammar.devices]
        return Language(Vocabulary(grammar.number_tokens, words, grammar.max_children))

    @abstractmethod
    def words(self) -> Sequence[str]:
        """Returns what is said beside numbers and `apr.language.vocabulary.CONTROL`."""

    @abstractmethod
    def draw(self, name: str, rng: Random, taken: set[Any]) -> Problem:
        """Returns a new problem, and puts into `taken` what it is known by. Raises `ParamsError`."""

    @abstractmethod
    def row(self, problem: Problem) -> tuple[Any, ...]:
        """Returns the values of `schema`."""

    @abstractmethod
    def problem(self, row: Mapping[str, Any]) -> Problem:
        """Returns the problem of a row of `schema`. Raises `DataError` if it is none or has no solution."""

    @abstractmethod
    def read(self, text: str) -> Problem:
        """Returns the problem that a person has written, with a solution or without. Raises `DataError`."""

    @abstractmethod
    def prompt(self, problem: Problem, condition: Condition | None = None) -> list[int]:
        """Returns the root's prompt: `ThreadSyntax.prompt` of the problem's token ids."""

    @abstractmethod
    def demonstrate(self, problem: Problem, method: Any, rng: Random, children: int | None = None) -> Trace:
        """Returns a trace of the solver of a `Method`, which spawns up to `method.spawns` at a time: a random
        one, or one that has so many `children` (or the closest number that it can)."""

    @abstractmethod
    def verify(self, problem: Problem, ids: Sequence[int]) -> Verdict | Malformed:
        """Judges a root thread, whatever a model wrote: for rewards, evaluations and traces alike."""

    def label(self, problem: Problem, prompt: Sequence[int], returned: Sequence[int] | None) -> Label:
        """Returns what is known of a child, by its prompt and what it returned; None if that is nothing."""
        raise NotImplementedError
