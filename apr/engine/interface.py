"""What every decoder offers, on plain ints and floats: the slot engine here, a server elsewhere."""

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple, Protocol


class Sampling(NamedTuple):
    """How a thread's tokens are drawn. Temperature 0 is greedy.

    `key` (63 bits) is the thread's noise: with the position of a token in its thread it fixes the uniform
    that draws this token, whatever else is in the batch.
    """

    temperature: float
    key: int


class Segment(NamedTuple):
    """The tokens sampled since the thread was opened or last extended; a stop token is the last of them.

    `logprobs` (nats) are under the distribution sampled from, at temperature 1 where decoding is greedy.
    """

    ids: list[int]
    logprobs: list[float]
    reason: Literal["stop", "length"]

    def first(self, count: int) -> "Segment":
        """The segment as it would be had the thread reached its limit after `count` tokens."""
        if len(self.ids) <= count:
            return self
        return Segment(self.ids[:count], self.logprobs[:count], "length")


class Decoder(Protocol):
    """Decodes many threads at once. Misuse (an unknown key, ids that do not fit) raises `ValueError`."""

    capacity: int
    """Threads that decode at the same time; more may be open and wait for their turn."""

    def open(
        self, key: Hashable, prompt: Sequence[int], sampling: Sampling, limit: int, rank: int = 0
    ) -> None:
        """Starts a thread. `limit` is the largest length of the whole thread, prompt included.

        Of threads that wait for their turn, those of the lowest `rank` come first, the oldest of them first.
        """

    def extend(self, key: Hashable, ids: Sequence[int], limit: int) -> None:
        """Appends `ids` to a stopped thread, which then goes on sampling, up to a new `limit`."""

    def shorten(self, key: Hashable, limit: int) -> None:
        """Lowers the limit of a thread, unless it has stopped. One that is longer already is cut."""

    def close(self, key: Hashable) -> None:
        """Forgets a thread in any state; its memory is free at once."""

    def step(self) -> list[tuple[Hashable, Segment]]:
        """Advances the open threads; returns those that stopped now and wait to be extended or closed."""

    @property
    def busy(self) -> bool:
        """Whether a thread is decoding or waits for its turn."""
