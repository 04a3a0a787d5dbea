"""The slot engine as a server: completions in the wire formats of vLLM and SGLang, token ids in and out.

    POST /v1/completions   {"prompt": [ids], "max_tokens", "temperature", "seed", "stop_token_ids"}
    POST /generate         {"input_ids": [ids], "sampling_params": {"max_new_tokens", "temperature", ...}}
    POST /update_weights_from_disk   {"model_path", "weight_version"}
    GET  /health, /v1/models

Requests of all connections share the engine's batches. The stop ids are those that the server was started
with; a request that asks for others is refused, as is one that does not fit the window. A request whose
client has gone is decoded no further. New weights are loaded between requests: those that came before are
decoded by the old ones, to their end. `/generate` says which `weight_version` has decoded.
"""

import asyncio
import json
import logging
import socket
import threading
from asyncio import Future
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import PreTrainedModel
from uvicorn.protocols.http.h11_impl import H11Protocol

from apr.core.errors import AprError, ServerError
from apr.engine.interface import Segment
from apr.engine.servers.protocols import Completion, Generation, NewWeights, Refused, Thread
from apr.engine.slots import SlotEngine

BODY_SECONDS = 30.0
"""In which a body has to come."""
BODY_BYTES = 1 << 20
"""What a body may have beside its prompt."""


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at `host`, a name or an address, IPv4 where it has both; port 0 takes a
    free one. Raises `ServerError`."""
    try:
        if not 0 <= port < 1 << 16:
            raise ValueError("allowed: ports from 0 to 65535")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        return socket.create_server(cast(Any, address), family=family, backlog=1024)
    except (OSError, ValueError) as error:  # UnicodeError, of impossible names, is one
        raise ServerError(f"cannot listen at host {host!r}, port {port}: {error}") from None


class Batches:
    """The engine among requests: one coroutine opens their threads, steps, and hands out what has stopped."""

    def __init__(self, engine: SlotEngine, load: Callable[[Path], PreTrainedModel]):
        self.engine, self.version = engine, "default"
        self._load = load
        self._waiting: deque[tuple[Thread | NewWeights, Future]] = deque()
        self._open: set[Future] = set()
        self._news = asyncio.Event()
        """Something has come, or whoever asked for it has gone."""

    def add(self, item: Thread | NewWeights) -> Future:
        """Returns what will be a segment and the version of its weights, or None once there are new weights.

        Cancelled, it is decoded no further. It fails as the engine does, or as `load`: the old weights are
        then kept.
        """
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._news.set())
        self._waiting.append((item, future))
        self._news.set()
        return future

    async def work(self) -> None:
        with ThreadPoolExecutor(1, "engine") as thread:
            run = partial(asyncio.get_running_loop().run_in_executor, thread)
            while True:
                self._news.clear()
                await self._begin(run)
                try:
                    for future, segment in await run(self._steps):
                        self._end(future, (segment, self.version))
                except Exception as error:
                    logging.exception("the engine has failed")
                    said = " ".join(str(error).split())
                    for future in list(self._open):
                        self._end(future, HTTPException(500, f"the engine has failed: {said}"))
                if not self.engine.busy:
                    await self._news.wait()

    async def _begin(self, run: Callable[..., Awaitable[Any]]) -> None:
        """Closes what nobody waits for, and opens what has come, up to new weights, which wait for an idle
        engine."""
        for future in [future for future in self._open if future.done()]:
            self._end(future, None)
        while self._waiting and not (self.engine.busy and isinstance(self._waiting[0][0], NewWeights)):
            item, future = self._waiting.popleft()
            try:
                if isinstance(item, NewWeights):
                    model = await run(self._load, Path(item.model_path))
                    await run(self.engine.reload_weights, model)
                    self.version = item.weight_version
                    _answer(future, None)
                elif not future.done():
                    self.engine.open(future, *item)
                    self._open.add(future)
            except Exception as error:
                _answer(future, error)

    def _steps(self) -> list[tuple[Any, Segment]]:
        """Steps until something stops, or there is news."""
        stopped: list[tuple[Any, Segment]] = []
        while self.engine.busy and not stopped:
            stopped = self.engine.step()
            if self._news.is_set():
                break
        return stopped

    def _end(self, future: Future, found: Any) -> None:
        self.engine.close(future)
        self._open.remove(future)
        _answer(future, found)


def _answer(future: Future, found: Any) -> None:
    if isinstance(found, Exception) and not future.done():
        future.set_exception(found)
    elif not future.done():
        future.set_result(found)


def one_set(directory: Path) -> PreTrainedModel:
    raise ValueError("this server has one set of weights")


class EngineServer:
    """Serves `engine` at `listener` (by default a free port of this machine) while its context is entered.

    `load` gives the model of other weights, with the same vocabulary and shapes, or raises `AprError`.
    """

    def __init__(self, engine: SlotEngine, name: str, listener: socket.socket | None = None,
                 load: Callable[[Path], PreTrainedModel] = one_set):  # fmt: skip
        self.batches, self._name = Batches(engine, load), name
        self._most = BODY_BYTES + 16 * engine.window
        self._socket = listener or listen("127.0.0.1", 0)
        routes = [Route(path, self._models) for path in ("/health", "/v1/models")]
        for kind in (Completion, Generation):
            routes.append(Route(kind.path, partial(self._decode, kind), methods=["POST"]))
        routes.append(Route("/update_weights_from_disk", self._update, methods=["POST"]))
        app = Starlette(routes=routes, lifespan=self._lifespan,
                        exception_handlers={HTTPException: _error, Exception: _error})  # fmt: skip
        app.router.redirect_slashes = False
        # Clients keep connections for less long, so that none is closed under a request.
        self._server = uvicorn.Server(uvicorn.Config(
            app, http=JsonProtocol, ws="none", log_config=None, access_log=False, timeout_keep_alive=75,
            timeout_graceful_shutdown=1))  # fmt: skip
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> "EngineServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def wait(self) -> None:
        """Until the server ends."""
        self._thread.join()

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        work = asyncio.create_task(self.batches.work())
        yield
        work.cancel()

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self._name, "object": "model"}]})

    async def _decode(self, kind: type[Completion], request: Request) -> Response:
        body, engine = kind.read(await self._raw(request)), self.batches.engine
        thread = body.thread(self._name, engine.vocabulary_size, engine.window, engine.stop_ids)
        future, gone = self.batches.add(thread), asyncio.ensure_future(request.receive())
        await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not future.done():
            future.cancel()
            return Response()  # to nobody
        return JSONResponse(body.answer(self._name, *future.result()))

    async def _update(self, request: Request) -> Response:
        body = NewWeights.read(await self._raw(request))
        try:
            await self.batches.add(body)
        except (AprError, ValueError, OSError) as error:
            return JSONResponse({"success": False, "message": str(error)}, 400)
        return JSONResponse({"success": True, "message": f"loaded {body.model_path}"})

    async def _raw(self, request: Request) -> bytes:
        raw, size = bytearray(), int(request.headers.get("Content-Length", 0))
        try:
            async with asyncio.timeout(BODY_SECONDS):
                parts = request.stream()
                while size <= self._most and (part := await anext(parts, None)) is not None:
                    raw += part
                    size = max(size, len(raw))
        except (TimeoutError, ClientDisconnect):
            raise Refused(f"the body did not come to its end in {BODY_SECONDS} s") from None
        if size > self._most:
            raise HTTPException(413, f"the body is too large; allowed: {self._most} bytes")
        return bytes(raw)


def _error(request: Request, error: Exception) -> Response:
    """One line. What is nobody's `HTTPException` Starlette raises again, and uvicorn logs."""
    if not isinstance(error, HTTPException):
        error = HTTPException(500, f"the server has failed: {type(error).__name__}")
    where = f"{request.method} {request.url.path}: " if error.status_code in (404, 405) else ""
    return JSONResponse({"error": where + error.detail}, error.status_code, error.headers)


class JsonProtocol(H11Protocol):
    """Refuses in JSON what is no HTTP, and a body that ends before its `Content-Length`."""

    def eof_received(self) -> None:
        if self.cycle is not None and self.cycle.more_body and not self.cycle.response_started:
            self.send_400_response("The body ends before its Content-Length.")

    def send_400_response(self, msg: str) -> None:
        content = json.dumps({"error": msg}).encode()
        head = h11.Response(status_code=400, headers=[
            ("Content-Type", "application/json"), ("Content-Length", str(len(content))),
            ("Connection", "close")])  # fmt: skip
        for event in (head, h11.Data(content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
