"""Equal threads, decoded once: what one samples depends on ids, limit and noise, or greedily on no noise."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from apr.engine.interface import Decoder, Sampling, Segment

KEPT = 1024
"""Greedy segments that are remembered, those of some hundred rollouts."""


class _Request(NamedTuple):
    """What is to be sampled: what follows `ids`, up to `limit`."""

    ids: tuple[int, ...]
    limit: int
    sampling: Sampling


@dataclass(eq=False)
class _Thread:
    key: Hashable
    rank: int
    request: _Request
    limit: int
    source: "_Source | None" = None
    sampled: list[int] | None = None
    """None while it is decoded."""


@dataclass(eq=False)
class _Source:
    """A thread of the decoder below, its own key there."""

    request: _Request
    limit: int
    sharers: list[_Thread]
    """Those that it is decoded for; once it has stopped, those that are the same as it."""


class SharedDecoder:
    """A `Decoder` that has another one decode equal threads once.

    Whoever asks for what is being decoded, or was, greedily, not long ago, gets the same segment. A thread is
    decoded as far as the last of its sharers needs, and closed when none is left. When it has stopped, the
    first of them that goes on extends it; the ids of the others are read again when they go on.
    """

    def __init__(self, decoder: Decoder):
        self.capacity, self._decoder = decoder.capacity, decoder
        self._threads: dict[Hashable, _Thread] = {}
        self._decoding: dict[_Request, _Source] = {}
        self._known: dict[_Request, Segment] = {}
        self._ready: dict[_Thread, Segment] = {}

    def open(self, key: Hashable, prompt: Sequence[int], sampling: Sampling, limit: int,
             rank: int = 0) -> None:  # fmt: skip
        if key in self._threads:
            raise ValueError(f"thread {key!r} is already open")
        noise = sampling if sampling.temperature else Sampling(0.0, 0)
        thread = _Thread(key, rank, _Request(tuple(prompt), limit, noise), limit)
        self._ask(thread, thread.request, prompt)
        self._threads[key] = thread

    def extend(self, key: Hashable, ids: Sequence[int], limit: int) -> None:
        thread = self._threads.get(key)
        if thread is None or thread.sampled is None:
            raise ValueError(f"thread {key!r} is not open and stopped")
        whole = (*thread.request.ids, *thread.sampled, *ids)
        self._ask(thread, _Request(whole, limit, thread.request.sampling), ids)

    def shorten(self, key: Hashable, limit: int) -> None:
        thread = self._threads.get(key)
        if thread is None or limit <= len(thread.request.ids):
            raise ValueError(f"thread {key!r} is not open, or no room to sample is left")
        if thread.sampled is None:
            thread.limit = min(thread.limit, limit)
            if thread.source is not None:
                self._shorten(thread.source)

    def close(self, key: Hashable) -> None:
        if key not in self._threads:
            raise ValueError(f"thread {key!r} is not open")
        thread = self._threads.pop(key)
        self._ready.pop(thread, None)
        self._leave(thread)

    def step(self) -> list[tuple[Hashable, Segment]]:
        """Hands over what is known already, if there is anything; else advances the decoder."""
        if self._ready:
            ready, self._ready = self._ready, {}
            return [_stop(thread, segment) for thread, segment in ready.items()]
        return [told for source, segment in self._decoder.step()
                for told in self._hand_over(cast(_Source, source), segment)]  # fmt: skip

    @property
    def busy(self) -> bool:
        return bool(self._ready) or self._decoder.busy

    def _ask(self, thread: _Thread, request: _Request, ids: Sequence[int]) -> None:
        """Has a thread sample what follows `request`, which `ids` are new of."""
        source = self._decoding.get(request)
        if source is not None or request in self._known:
            self._leave(thread)
        elif thread.source is not None:
            source = thread.source
            self._decoder.extend(source, ids, request.limit)
            for sharer in source.sharers:
                sharer.source = None
            source.request, source.limit, source.sharers = request, request.limit, []
        else:
            source = _Source(request, request.limit, [])
            self._decoder.open(source, request.ids, request.sampling, request.limit, thread.rank)
        thread.request, thread.limit, thread.sampled = request, request.limit, None
        if source is None:
            self._ready[thread] = self._known[request]
        else:
            self._decoding[request] = thread.source = source
            source.sharers.append(thread)

    def _hand_over(self, source: _Source, segment: Segment) -> Iterator[tuple[Hashable, Segment]]:
        """Yields what each of its sharers gets of a segment; those that get less are no longer the same."""
        self._forget(source)
        request, sharers = source.request, list(source.sharers)
        whole = segment.reason == "stop" or source.limit == request.limit
        if whole and not request.sampling.temperature:
            self._known[request] = segment
            if len(self._known) > KEPT:
                del self._known[next(iter(self._known))]
        yield from (_stop(thread, segment) for thread in sharers)
        for thread in sharers:
            if thread.sampled != segment.ids:
                self._leave(thread)

    def _leave(self, thread: _Thread) -> None:
        """Ends what a thread has of its source, and closes that if nobody else has it."""
        source, thread.source = thread.source, None
        if source is None:
            return
        source.sharers.remove(thread)
        if not source.sharers:
            self._forget(source)
            self._decoder.close(source)
        elif thread.sampled is None:
            self._shorten(source)

    def _shorten(self, source: _Source) -> None:
        """Has it decode no further than one of its sharers needs."""
        limit = max(thread.limit for thread in source.sharers)
        if limit < source.limit:
            self._forget(source)
            self._decoder.shorten(source, limit)
            source.limit = limit

    def _forget(self, source: _Source) -> None:
        """Nobody else can share it from now on."""
        if self._decoding.get(source.request) is source:
            del self._decoding[source.request]


def _stop(thread: _Thread, segment: Segment) -> tuple[Hashable, Segment]:
    """Returns what a thread gets of a segment, as far as its own limit."""
    segment = segment.first(thread.limit - len(thread.request.ids))
    thread.sampled = segment.ids
    return thread.key, segment
