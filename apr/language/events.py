"""What a thread says, as typed events. A thread is a `Prompt`, then the others in any legal order."""

from typing import Literal, NamedTuple

from apr.language.operation import Operation


class Malformed(NamedTuple):
    """A text that breaks the grammar: a value, never raised. `position` is the index of the token."""

    position: int
    reason: str


class Condition(NamedTuple):
    """The budget asked for in a root's prompt (paper, section 3.4)."""

    kind: Literal["tokens", "children"]
    amount: int


class Line(NamedTuple):
    """A child state: ``:1 12 + 9 = 21 3 5``, the operation that leads there and the numbers it leaves."""

    depth: int
    operation: Operation
    rest: tuple[int, ...]

    @property
    def state(self) -> tuple[int, ...]:
        """The numbers of the state: the rest, then the result."""
        return (*self.rest, self.operation.result)


class Node(NamedTuple):
    """The target and the lines from the root down to a state: a child thread's whole context."""

    target: int
    lines: tuple[Line, ...]


Path = tuple[Operation, ...]


class RootPrompt(NamedTuple):
    target: int
    numbers: tuple[int, ...]
    condition: Condition | None


class ChildPrompt(NamedTuple):
    node: Node


class Leaf(NamedTuple):
    """A result of the last two numbers against the target: ``+ 27 !``."""

    op: str
    result: int
    comparison: str


class Listing(NamedTuple):
    """The lines that follow are queued, not searched."""


class Goto(NamedTuple):
    """The search continues below a queued state: ``goto``, its lines written again, ``go``."""

    lines: tuple[Line, ...]


class Spawn(NamedTuple):
    nodes: tuple[Node, ...]


class Joined(NamedTuple):
    """What the children returned, in the order in which they were spawned; None: no solution."""

    paths: tuple[Path | None, ...]


class Join(NamedTuple):
    """A child's end (paper: ``join(msg)``)."""

    path: Path | None


class Answer(NamedTuple):
    """The root's end."""

    path: Path | None


Event = RootPrompt | ChildPrompt | Line | Leaf | Listing | Goto | Spawn | Joined | Join | Answer
