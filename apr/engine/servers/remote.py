"""Decoding by servers over HTTP, behind the same door as the slot engine: token ids out, token ids in.

A thread is one request from its opening, or its last extension, to its stop; an extension submits the whole
thread again, whose keys and values the server's prefix cache still has. Requests go to the endpoint with the
fewest of them. What fails on the way (no connection, no answer in time, 5xx, an answer that is not what was
asked for) is tried again, elsewhere if there is an elsewhere; an endpoint that goes on failing is lost until
it answers again, and when all are lost decoding ends with `ServerError`. So it does when a server refuses a
request (4xx).
"""

import asyncio
import math
import queue
import time
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
from anyio.from_thread import start_blocking_portal

from apr.core.errors import ServerError
from apr.core.seeds import derive_seed
from apr.engine.interface import Sampling, Segment
from apr.engine.servers.endpoints import named, proxy_for
from apr.engine.servers.protocols import Wire

SEEDS = 1 << 31
"""Servers take seeds of 31 bits."""


@dataclass(eq=False)
class _Endpoint:
    url: str
    client: httpx.AsyncClient
    running: int = 0
    failures: int = 0
    """Since the last answer; of requests that were under way together, the first to fail counts."""
    failed_at: float = -math.inf
    fault: str = ""

    def rest(self, backoff: float) -> float:
        """Seconds until it is asked again; after a failure, by one request at a time."""
        if not self.failures:
            return 0.0
        left = self.failed_at + backoff * 2 ** (self.failures - 1) - time.monotonic()
        return max(left, backoff if self.running else 0.0)

    def failed(self, started: float, error: Exception) -> None:
        if started >= self.failed_at:
            self.failed_at = time.monotonic()
            self.failures += 1
            self.fault = " ".join(f"{named(self.url)}: {type(error).__name__} {error}".split())


@dataclass(eq=False)
class _Thread:
    ids: list[int]
    sampling: Sampling
    limit: int
    request: Future[Segment] | None = None
    """None once it has stopped."""


class RemoteDecoder(AbstractContextManager):
    """A `Decoder` with up to `capacity` requests under way at the servers `endpoints`.

    `timeout` (s) bounds a request, connection included; after a failure an endpoint rests for `backoff` (s),
    twice as long after each further one. Decoding ends once all have failed more than `retries` times since
    they last answered. Close it, or use it as a context manager. Raises `ServerError` for an endpoint that
    cannot be one.
    """

    def __init__(self, endpoints: Iterable[str], wire: Wire, stop_ids: Iterable[int], vocabulary_size: int,
                 capacity: int, timeout: float = 120.0, retries: int = 4, backoff: float = 0.25):  # fmt: skip
        self.capacity = capacity
        self.prefill_seconds = self.decode_seconds = 0.0
        """Servers do not tell them apart: all of the time that was waited for is decoding."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=capacity)
        self._endpoints = [
            _Endpoint(url.rstrip("/"), httpx.AsyncClient(
                timeout=timeout, transport=httpx.AsyncHTTPTransport(limits=limits, proxy=proxy_for(url))))
            for url in endpoints
        ]  # fmt: skip
        self._wire, self._stop, self._vocabulary = wire, sorted(set(stop_ids)), vocabulary_size
        self._retries, self._backoff = retries, backoff
        self._threads: dict[Hashable, _Thread] = {}
        self._done: queue.Queue[tuple[Hashable, Future[Segment]]] = queue.Queue()
        self._room = asyncio.Semaphore(capacity)
        self._thread = ExitStack()
        self._loop = self._thread.enter_context(start_blocking_portal())

    def __exit__(self, *_: object) -> None:
        self.close_all()

    def close_all(self) -> None:
        """Cancels what is under way and closes the connections."""
        for key in list(self._threads):
            self.close(key)
        for endpoint in self._endpoints:
            self._loop.call(endpoint.client.aclose)
        self._endpoints = []
        self._thread.close()

    def open(self, key: Hashable, prompt: Sequence[int], sampling: Sampling, limit: int,
             rank: int = 0) -> None:  # fmt: skip
        """`rank` is nothing to servers, which have an order of their own."""
        if key in self._threads:
            raise ValueError(f"thread {key!r} is already open")
        if not 0 < len(prompt) < limit:
            raise ValueError(f"prompt of {len(prompt)} tokens, limit {limit}: no room to sample")
        self._threads[key] = _Thread(list(prompt), sampling, limit)
        self._submit(key)

    def extend(self, key: Hashable, ids: Sequence[int], limit: int) -> None:
        thread = self._threads.get(key)
        if thread is None or thread.request is not None:
            raise ValueError(f"thread {key!r} is not open and stopped")
        if not len(thread.ids) + len(ids) < limit:
            raise ValueError(f"{len(thread.ids)} + {len(ids)} tokens, limit {limit}: no room to sample")
        thread.ids += ids
        thread.limit = limit
        self._submit(key)

    def shorten(self, key: Hashable, limit: int) -> None:
        thread = self._threads.get(key)
        if thread is not None and thread.request is None:
            return
        if thread is None or limit <= len(thread.ids):
            raise ValueError(f"thread {key!r} is not open, or no room to sample is left")
        thread.limit = min(thread.limit, limit)  # what is under way is cut when it comes

    def close(self, key: Hashable) -> None:
        if key not in self._threads:
            raise ValueError(f"thread {key!r} is not open")
        request = self._threads.pop(key).request
        if request is not None:
            request.cancel()

    @property
    def busy(self) -> bool:
        return any(thread.request is not None for thread in self._threads.values())

    def step(self) -> list[tuple[Hashable, Segment]]:
        """Waits until a thread stops. Raises `ServerError`."""
        started = time.perf_counter()
        stopped: list[tuple[Hashable, Segment]] = []
        while self.busy and (not stopped or not self._done.empty()):
            key, request = self._done.get()
            thread = self._threads.get(key)
            if thread is None or thread.request is not request:
                continue  # closed meanwhile
            found = request.result().first(thread.limit - len(thread.ids))
            thread.ids += found.ids
            thread.request = None
            stopped.append((key, found))
        self.decode_seconds += time.perf_counter() - started
        return stopped

    def _submit(self, key: Hashable) -> None:
        thread = self._threads[key]
        thread.request = self._loop.start_task_soon(self._decode, list(thread.ids), thread)
        thread.request.add_done_callback(lambda request: self._done.put((key, request)))

    async def _decode(self, ids: list[int], thread: _Thread) -> Segment:
        """One request, until some endpoint has answered it."""
        seed = derive_seed(thread.sampling.key, len(ids)) % SEEDS
        count = thread.limit - len(ids)
        body = self._wire.body(ids, thread.sampling, count, seed, self._stop)
        async with self._room:
            while True:
                endpoint = await self._endpoint()
                endpoint.running += 1
                started = time.monotonic()
                try:
                    response = await endpoint.client.post(endpoint.url + self._wire.path, json=body)
                    if response.is_client_error:
                        said = f"{response.status_code}: {' '.join(response.text.split())[:200]}"
                        raise ServerError(f"{named(endpoint.url)}: refused a request ({said})")
                    response.raise_for_status()
                    segment = self._checked(response.json(), len(ids), count)
                    endpoint.failures = 0
                    return segment
                except (httpx.HTTPError, LookupError, TypeError, ValueError) as error:
                    endpoint.failed(started, error)
                finally:
                    endpoint.running -= 1

    async def _endpoint(self) -> _Endpoint:
        """The least loaded of those that do not rest, once there is one."""
        while True:
            if all(endpoint.failures > self._retries for endpoint in self._endpoints):
                faults = "; ".join(endpoint.fault for endpoint in self._endpoints)
                raise ServerError(f"no server is left ({faults})")
            endpoint = min(self._endpoints,
                           key=lambda endpoint: (endpoint.rest(self._backoff), endpoint.running))  # fmt: skip
            if not (rest := endpoint.rest(self._backoff)):
                return endpoint
            await asyncio.sleep(rest)

    def _checked(self, payload: Any, prompt: int, count: int) -> Segment:
        """The answer, if it can be one. Raises `ValueError` and the errors of `Wire.answer`."""
        ids, logprobs, reason, seen = self._wire.answer(payload)
        if seen != prompt:
            raise ValueError(f"decoded from {seen} tokens instead of {prompt}")
        if not all(type(token) is int and 0 <= token < self._vocabulary for token in ids):
            raise ValueError("answered with something that is no token of the vocabulary")
        if len(logprobs) != len(ids) or not all(math.isfinite(value) and value < 1e-3 for value in logprobs):
            raise ValueError("answered without a log-probability for each token")
        stops = [token in self._stop for token in ids]
        if not ids or len(ids) > count or any(stops[:-1]) or reason not in ("stop", "length"):
            raise ValueError(f"answered with {len(ids)} tokens of {count}, {sum(stops)} of them stops")
        if not stops[-1] and len(ids) < count:
            raise ValueError(f"ended after {len(ids)} tokens of {count}, no stop: is its window too small?")
        return Segment(ids, logprobs, "stop" if stops[-1] else "length")
