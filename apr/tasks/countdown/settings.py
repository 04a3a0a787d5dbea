"""What can be said of Countdown's problems and solvers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from apr.core.errors import ParamsError
from apr.core.params import Problems, TraceMethod
from apr.core.settings import Natural, Positive, Range, Share, only

Heuristic = Literal["multiply", "result", "shrink"]

MOST_PRODUCT = 2**58
"""Of the numbers of a problem, 0 and 1 taken as 2: so no value of an expression leaves 64 bits."""


class CountdownProblems(Problems):
    """Countdown problems (paper, section 4.1: numbers 1-99, targets 10-100, 500k / - / 1,000)."""

    numbers: Annotated[int, Field(ge=2, le=6)] = 4
    number_range: Range = (1, 20)
    target_range: Range = (10, 50)
    max_value: Positive | None = 100
    """Largest intermediate value that a solution may use; null for no bound, as in the paper."""

    def __str__(self) -> str:
        numbers, targets = (f"{low} to {high}" for low, high in (self.number_range, self.target_range))
        bound = "unbounded" if self.max_value is None else f"up to {self.max_value}"
        return f"{self.numbers} numbers from {numbers}, targets from {targets}, intermediate values {bound}"

    @model_validator(mode="after")
    def _small(self) -> "CountdownProblems":
        if max(2, self.number_range[1]) ** self.numbers > MOST_PRODUCT:
            raise ParamsError(f"problems.number_range: {list(self.number_range)} is not allowed; allowed: "
                              f"{self.numbers} numbers whose product is at most 2^58")
        return self


class Solver(TraceMethod):
    """One of the solvers."""

    solver: Literal["sos", "sos_plus", "apr"]
    beam: Annotated[Range, only(lambda ends: ends[0] >= 1, "from 1 on")]
    """Children kept per node, drawn per problem; of the parent, for `apr`."""
    middle_share: Share = 0.0
    """Share of the beams that are the middle of `beam`, rounded down; the others are drawn evenly. Where all
    are, as in the paper, beams are as likely, and which of them greedy decoding takes is chance."""
    heuristic: Heuristic = "multiply"
    """What a beam keeps and a queue takes first: states whose numbers, or whose newest number, are near
    factors of the target; or (`shrink`) differences and quotients, the smallest first, and then sums and
    products, of the largest numbers first."""
    max_value: Positive | None = None
    """Largest value that is looked at, if `problems.max_value` allows more: few solutions need larger ones,
    but most of what a search without a bound writes."""
    child_beam: Positive | Annotated[Range, only(lambda ends: ends[0] >= 1, "from 1 on")] = 15
    """`apr`: a child's beam is uniform between the parent's and this; or in a range of its own, which may be
    narrower. Of children that spawn it is the parent's."""
    promising: Share = 0.9
    """Probability that a node's children are spawned (apr) or searched at once (sos_plus)."""
    child_promising: Share = 1.0
    """`apr`: `promising` of the serial search inside a child."""
    spawn_depth: Natural = 0
    """`apr`: deepest node (that a thread begins with = 0) whose children may be spawned."""
    depth: Annotated[int, Field(ge=1, le=5)] = 1
    """`apr`: how deep threads nest. 1: only the root spawns; 2: its children do as it does, with its beam."""

    @property
    def spawns(self) -> int:
        return self.beam[1] if self.solver == "apr" else 0

    @property
    def deepest(self) -> int:
        return self.depth if self.solver == "apr" else 0
