"""Decoding over HTTP from a real server: exact where all is well, loud or patient where it is not."""

import json
import re
import threading
import time
from collections import Counter
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from apr.core.errors import ServerError
from apr.engine.interface import Sampling
from apr.engine.servers.endpoints import load_weights, proxy_for
from apr.engine.servers.protocols import SglangWire, VllmWire
from apr.engine.servers.remote import RemoteDecoder
from apr.engine.servers.serve import EngineServer
from apr.engine.slots import SlotEngine

VOCABULARY, WINDOW = 23, 48
STOP = frozenset(range(3))
WIRES = {"vllm": VllmWire("tiny"), "sglang": SglangWire()}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama(VOCABULARY, WINDOW, num_attention_heads=2, num_key_value_heads=2)


class Faulty(BaseHTTPRequestHandler):
    """Stands before a server, and spoils its answers as `server.faults` says, in turn, until none is left."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        with server.lock:
            server.seen += 1
            fault = server.faults.pop(0) if server.faults else None
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if fault in ("reset", "stall"):
            time.sleep(1.2 if fault == "stall" else 0.0)
            self.close_connection = True
            return
        path = urlsplit(self.path).path  # all of the address, where this is a proxy
        answer = server.client.post(server.real.url + path, content=body)
        status, payload = answer.status_code, answer.json()
        if fault == "500":
            status, payload = 500, {"error": "out of memory"}
        content = json.dumps(spoilt(payload, fault)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "truncated" else content)
        self.close_connection = fault == "truncated"

    def log_message(self, *_):
        pass


def spoilt(payload, fault):
    for choice in payload.get("choices", []):
        if fault == "wrong ids":
            choice["token_ids"] = [VOCABULARY + 5 for _ in choice["token_ids"]]
        elif fault == "past a stop":
            choice["token_ids"] = [*choice["token_ids"][:-1], 1, 1]
            choice["logprobs"]["token_logprobs"].append(-1.0)
        elif fault == "no logprobs":
            choice["logprobs"]["token_logprobs"] = [None for _ in choice["token_ids"]]
        elif fault == "other prompt":
            choice["prompt_token_ids"] = [1, *choice["prompt_token_ids"]]
        elif fault == "half":
            return {"choices": []}
    return payload


class FaultyServer(ThreadingHTTPServer):
    request_queue_size = 1024

    def __init__(self, real, faults):
        super().__init__(("127.0.0.1", 0), Faulty)
        self.real, self.faults, self.seen, self.lock = real, list(faults), 0, threading.Lock()
        self.client = httpx.Client(trust_env=False)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_):
        """A client that went away is part of the test."""


FAULTS = ("500", "reset", "stall", "truncated", "half", "wrong ids", "past a stop", "no logprobs",
          "other prompt")  # fmt: skip


@pytest.fixture
def serve(model):
    """Starts a server of the model; with `faults` to come, behind one that has them and counts requests."""
    with ExitStack() as running:

        def start(faults=None, slots=8):
            engine = SlotEngine(model, STOP, slots, WINDOW)
            real = running.enter_context(EngineServer(engine, "tiny"))
            if faults is None:
                return real
            server = FaultyServer(real, faults)
            running.callback(server.server_close)
            running.callback(server.shutdown)
            return server

        yield start


def remote(*servers, wire="vllm", **options):
    urls = [server if isinstance(server, str) else server.url for server in servers]
    options = {"timeout": 10.0, "backoff": 0.02, "retries": 3} | options
    return RemoteDecoder(urls, WIRES[wire], STOP, VOCABULARY, capacity=16, **options)


def prompts(count):
    return [[6 + (key * 7 + place * 3) % 16 for place in range(1 + key % 9)] for key in range(count)]


def drain(decoder, count=20, temperature=0.0):
    """Opens threads, extends each once where it has room, and closes it: its one or two segments by key."""
    for key, prompt in enumerate(prompts(count)):
        decoder.open(key, prompt, Sampling(temperature, 1000 + key), WINDOW - 20)
    found = {}
    while decoder.busy:
        for key, segment in decoder.step():
            found.setdefault(key, []).append(segment)
            length = len(prompts(count)[key]) + len(segment.ids)
            if len(found[key]) == 1 and length < WINDOW - 20:
                decoder.extend(key, [9, 10], WINDOW)
            else:
                decoder.close(key)
    return found


def tokens(found):
    return {key: [part.ids for part in found[key]] for key in sorted(found)}


@pytest.mark.parametrize("wire", WIRES)
def test_greedy_over_http_is_greedy_at_home(model, serve, wire):
    with remote(serve(), wire=wire) as decoder:
        there = drain(decoder)
    here = drain(SlotEngine(model, STOP, 8, WINDOW))
    assert tokens(there) == tokens(here)
    assert {part.reason for parts in there.values() for part in parts} == {"stop", "length"}
    for key in here:
        for one, other in zip(there[key], here[key], strict=True):
            assert one.reason == other.reason and one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_sampling_depends_on_the_key_of_a_thread_and_not_on_the_servers(serve):
    with remote(serve()) as one, remote(serve(), serve(slots=2)) as two:
        first, second = drain(one, temperature=1.0), drain(two, temperature=1.0)
    assert tokens(first) == tokens(second)
    assert len({tuple(parts[0].ids) for parts in first.values()}) > 10


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again_and_changes_nothing(serve, fault):
    with remote(serve()) as decoder:
        expected = tokens(drain(decoder))
    server = serve([fault, None, fault])
    patience = {"timeout": 1.0, "retries": 20} if fault == "stall" else {}
    with remote(server, **patience) as decoder:
        assert tokens(drain(decoder)) == expected
    assert not server.faults and server.seen > sum(map(len, expected.values()))


def test_a_lost_server_fails_over_and_the_last_one_lost_is_named(serve):
    with remote(serve()) as decoder:
        expected = tokens(drain(decoder))
    nobody = "http://127.0.0.1:9"
    with remote(nobody, serve()) as decoder:
        assert tokens(drain(decoder)) == expected
    down = serve(["500"] * 1000)
    with remote(nobody, down) as decoder, pytest.raises(ServerError) as error:
        drain(decoder)
    assert nobody in str(error.value) and f"{down.url}: HTTPStatusError" in str(error.value)
    assert "no server is left" in str(error.value) and "\n" not in str(error.value)


def test_a_server_that_was_lost_is_asked_again(serve):
    with remote(serve()) as decoder:
        expected = tokens(drain(decoder))
    first, second = serve(()), serve(["500"] * 5)
    with remote(first, second, retries=1) as decoder:
        while second.faults:
            assert tokens(drain(decoder)) == expected
        seen = second.seen
        assert tokens(drain(decoder)) == expected and second.seen > seen
        first.faults += ["500"] * 1000
        assert tokens(drain(decoder)) == expected


def test_replicas_share_the_load(serve):
    servers = [serve(()), serve(()), serve(())]
    with remote(*servers) as decoder:
        drain(decoder, count=60)
    seen = [server.seen for server in servers]
    assert min(seen) > sum(seen) / 6


def test_a_request_that_is_refused_ends_the_run_at_once(serve):
    server = serve(())
    decoder = RemoteDecoder([server.url], WIRES["vllm"], {5}, VOCABULARY, capacity=4)
    with decoder, pytest.raises(ServerError, match=r"refused a request \(400: .*stop_token_ids"):
        drain(decoder)
    assert server.seen < 30


def test_shortened_and_closed_threads(serve):
    with remote(serve()) as decoder:
        for key in range(4):
            decoder.open(key, [6, 7, 8 + key], Sampling(1.0, key), WINDOW)
        decoder.shorten(1, 5)
        decoder.close(2)
        found = Counter()
        while decoder.busy:
            for key, segment in decoder.step():
                found[key] += len(segment.ids)
        assert set(found) == {0, 1, 3} and found[1] <= 2
        decoder.shorten(1, 7)  # it has stopped: nothing happens
        decoder.shorten(0, 4)
        with pytest.raises(ValueError, match="already open"):
            decoder.open(0, [6], Sampling(1.0, 0), WINDOW)
        with pytest.raises(ValueError, match="not open"):
            decoder.close(2)
        with pytest.raises(ValueError, match="no room"):
            decoder.extend(0, [6] * WINDOW, WINDOW)
    decoder.close_all()  # twice does no harm


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_server_on_this_machine_is_asked_without_a_proxy(serve, monkeypatch, name, host):
    monkeypatch.setenv(name, "http://user:secret@127.0.0.1:9")
    server = serve()
    with remote(server.url.replace("127.0.0.1", host)) as decoder:
        assert len(drain(decoder, count=2)) == 2


def test_a_proxy_is_used_and_whatever_goes_wrong_on_the_way_names_it(serve, monkeypatch):
    proxy, away = serve(()), "http://model.invalid:80"
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    with remote(serve()) as one, remote(away) as other:
        assert tokens(drain(one)) == tokens(drain(other)) and proxy.seen > 20
    monkeypatch.setenv("NO_PROXY", "example.org,model.invalid")
    assert proxy_for(away) is None
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "user:secret@127.0.0.1:9")  # nobody there
    named = re.escape(f"{away} (by the proxy http://127.0.0.1:9)")
    lost = f"no server is left .{named}: ConnectError"
    with remote(away, retries=0) as decoder, pytest.raises(ServerError, match=lost):
        drain(decoder)
    with pytest.raises(ServerError, match=f"{named}: did not load weights .ConnectError") as error:
        load_weights("sglang", [away], Path("x"), "next", 1.0)
    assert "secret" not in str(error.value)
    monkeypatch.setenv("HTTP_PROXY", serve(["500"] * 99).url)
    with remote(away, retries=0) as decoder, pytest.raises(ServerError, match="by the proxy .*500") as error:
        drain(decoder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "ftp://x", "http://x:port"])
def test_a_proxy_that_is_none_is_refused(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ServerError, match="model.invalid: no address of a server, or the proxy for it is"):
        remote("http://model.invalid")


@pytest.mark.parametrize("url", ["localhost:8000", "", "http://", "ftp://x", "http://[::1", "http://x:9x"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ServerError, match="no address of a server"):
        remote(url)
