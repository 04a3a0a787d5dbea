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

import json
import queue
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, cast

from apr.core.errors import AprError
from apr.engine.interface import Sampling, Segment
from apr.engine.slots import SlotEngine

EVERY = 0.05
"""Seconds between two looks at whether the client of a request is still there."""


class Refused(ValueError):
    """What is wrong with a request."""


class Gone(Exception):
    """The client of a request has closed its connection."""


@dataclass
class _Request:
    prompt: list[int]
    sampling: Sampling
    limit: int
    answer: Future[tuple[Segment, str]] = field(default_factory=Future)
    """What was decoded, and by which version of the weights."""


@dataclass
class _Update:
    directory: Path
    version: str
    answer: Future[None] = field(default_factory=Future)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: "EngineServer"

    def do_GET(self) -> None:
        if self.path in ("/health", "/v1/models"):
            self.reply(200, {"object": "list", "data": [{"id": self.server.name, "object": "model"}]})
        else:
            self.reply(404, {"error": f"no such path: {self.path}"})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(raw)
            if self.path == "/v1/completions":
                self.reply(200, self.completion(body))
            elif self.path == "/generate":
                self.reply(200, self.generation(body))
            elif self.path == "/update_weights_from_disk":
                self.update(body)
            else:
                self.reply(404, {"error": f"no such path: {self.path}"})
        except (Refused, json.JSONDecodeError) as error:
            self.reply(400, {"error": str(error)})
        except (AttributeError, KeyError, TypeError) as error:
            self.reply(400, {"error": f"not a request: {type(error).__name__} {error}"})
        except RuntimeError as error:
            self.reply(500, {"error": str(error)})
        except Gone:
            self.close_connection = True

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, temperature = body["prompt"], body.get("temperature", 1.0)
        seed, most, stop = map(body.get, ("seed", "max_tokens", "stop_token_ids"))
        found, _ = self.server.decode(prompt, temperature, seed, most, stop, self.gone)
        choice = {"index": 0, "text": "", "token_ids": found.ids, "prompt_token_ids": prompt,
                  "logprobs": {"token_logprobs": found.logprobs}, "finish_reason": found.reason,
                  "stop_reason": found.ids[-1] if found.reason == "stop" else None}  # fmt: skip
        return {"object": "text_completion", "model": self.server.name, "choices": [choice],
                "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(found.ids)}}  # fmt: skip

    def generation(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, settings = body["input_ids"], body.get("sampling_params", {})
        temperature = settings.get("temperature", 1.0)
        seed, most, stop = map(settings.get, ("sampling_seed", "max_new_tokens", "stop_token_ids"))
        found, version = self.server.decode(prompt, temperature, seed, most, stop, self.gone)
        reason = {"type": found.reason} | ({"matched": found.ids[-1]} if found.reason == "stop" else {})
        logprobs = [[value, token, None] for value, token in zip(found.logprobs, found.ids, strict=True)]
        return {"text": "", "output_ids": found.ids,
                "meta_info": {"prompt_tokens": len(prompt), "completion_tokens": len(found.ids),
                              "finish_reason": reason, "output_token_logprobs": logprobs,
                              "weight_version": version}}  # fmt: skip

    def update(self, body: dict[str, Any]) -> None:
        try:
            self.server.update(Path(body["model_path"]), str(body.get("weight_version", "default")))
        except (AprError, ValueError) as error:
            self.reply(400, {"success": False, "message": str(error)})
        else:
            self.reply(200, {"success": True, "message": f"loaded {body['model_path']}"})

    def gone(self) -> bool:
        """Whether the client has closed the connection; what it may have sent meanwhile is left unread."""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def reply(self, status: int, payload: dict[str, Any]) -> None:
        content = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing: the engine's rate is what matters, and it is the client's."""


class EngineServer(ThreadingHTTPServer):
    """Serves `engine` at `address` (host, port; 0 takes a free one) until `shutdown`.

    `load` makes the engine of other weights, with the same vocabulary and window, or raises `AprError`;
    without it there are no others.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, engine: SlotEngine, stop_ids: frozenset[int], vocabulary_size: int, name: str,
                 address: tuple[str, int] = ("127.0.0.1", 0), handler: type[Handler] = Handler,
                 load: Callable[[Path], SlotEngine] | None = None):  # fmt: skip
        super().__init__(address, handler)
        self.name, self.version = name, "default"
        self._load = load
        self._engine, self._stop, self._vocabulary = engine, sorted(stop_ids), vocabulary_size
        self._waiting: queue.Queue[_Request | _Update | None] = queue.Queue()
        self._worker = threading.Thread(target=self._work, daemon=True, name="engine")
        self._worker.start()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def server_close(self) -> None:
        super().server_close()
        self._waiting.put(None)
        self._worker.join()

    def decode(self, prompt: Any, temperature: Any, seed: Any, most: Any, stop: Any,
               gone: Callable[[], bool]) -> tuple[Segment, str]:  # fmt: skip
        """One request, in a batch with whatever else is there, and the version of the weights.

        Raises `Refused`, `Gone`, `RuntimeError`.
        """
        if not isinstance(prompt, list) or not all(
            type(token) is int and 0 <= token < self._vocabulary for token in prompt
        ):
            raise Refused(f"prompt: allowed: a list of ids below {self._vocabulary}")
        if type(most) is not int or not 0 < most <= self._engine.window - len(prompt) or not prompt:
            raise Refused(f"{len(prompt)} tokens and {most} more: allowed: at least one of each, "
                          f"{self._engine.window} together")  # fmt: skip
        if not isinstance(temperature, (int, float)) or temperature < 0:
            raise Refused(f"temperature {temperature!r}: allowed: 0 or more")
        if stop is not None and sorted(stop) != self._stop:
            raise Refused(f"stop_token_ids {stop}: allowed: {self._stop}, with which the server was started")
        if seed is not None and (type(seed) is not int or seed < 0):
            raise Refused(f"seed {seed!r}: allowed: an integer of 0 or more")
        request = _Request(prompt, Sampling(float(temperature), seed or 0), len(prompt) + most)
        self._waiting.put(request)
        while True:
            try:
                return request.answer.result(timeout=EVERY)
            except TimeoutError:
                if gone() and request.answer.cancel():
                    raise Gone from None

    def update(self, directory: Path, version: str) -> None:
        """Takes the weights of `directory`. Raises what `load` raises; the old ones are then kept."""
        update = _Update(directory, version)
        self._waiting.put(update)
        update.answer.result()

    def _work(self) -> None:
        """Opens what has come, steps, hands out what has stopped; sleeps while there is nothing to do."""
        answers: dict[int, Future[tuple[Segment, str]]] = {}
        keys, update = count(), None
        while True:
            while update is None and (not self._engine.busy or not self._waiting.empty()):
                item = self._waiting.get()
                if item is None:
                    return
                if isinstance(item, _Update):
                    update = item
                else:
                    key = next(keys)
                    answers[key] = item.answer
                    self._engine.open(key, item.prompt, item.sampling, item.limit)
            for key in [key for key, answer in answers.items() if answer.cancelled()]:
                self._engine.close(key)
                del answers[key]
            if update is not None and not self._engine.busy:
                self._replace(update)
                update = None
            else:
                self._step(answers)

    def _replace(self, update: _Update) -> None:
        try:
            if self._load is None:
                raise Refused("this server has one set of weights")
            self._engine = self._load(update.directory)
        except Exception as error:
            update.answer.set_exception(error)
        else:
            self.version = update.version
            update.answer.set_result(None)

    def _step(self, answers: dict[int, Future[tuple[Segment, str]]]) -> None:
        try:
            stopped = self._engine.step()
        except Exception as error:
            for key, answer in answers.items():
                self._engine.close(key)
                if answer.set_running_or_notify_cancel():
                    answer.set_exception(RuntimeError(f"the engine has failed: {error}"))
            answers.clear()
            return
        for ended, segment in stopped:
            self._engine.close(ended)
            answer = answers.pop(cast(int, ended))
            if answer.set_running_or_notify_cancel():
                answer.set_result((segment, self.version))
