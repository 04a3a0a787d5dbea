"""Decoding over HTTP from a real server: exact where all is well, loud or patient where it is not."""

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from apr.core.errors import ServerError
from apr.engine.interface import Sampling
from apr.engine.remote import RemoteDecoder
from apr.engine.serve import EngineServer, Handler
from apr.engine.slots import SlotEngine
from apr.engine.wires import SglangWire, VllmWire

VOCABULARY, WINDOW = 23, 48
STOP = frozenset(range(3))
WIRES = {"vllm": VllmWire("tiny"), "sglang": SglangWire()}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama(VOCABULARY, WINDOW, num_attention_heads=2, num_key_value_heads=2)


class Faulty(Handler):
    """Answers as `server.faults` says, in turn, and properly once there are no more."""

    def do_POST(self):
        server = self.server
        with server.lock:
            server.seen += 1
            fault = server.faults.pop(0) if server.faults else None
        if fault == "500":
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(500, {"error": "out of memory"})
        elif fault == "reset":
            self.connection.close()
            self.close_connection = True
        elif fault == "stall":
            time.sleep(1.0)
            self.close_connection = True
        else:
            self.fault = fault
            super().do_POST()

    def reply(self, status, payload):
        fault = getattr(self, "fault", None)
        if fault == "truncated":
            content = json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
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
                payload = {"choices": []}
        super().reply(status, payload)


FAULTS = ("500", "reset", "stall", "truncated", "half", "wrong ids", "past a stop", "no logprobs",
          "other prompt")  # fmt: skip


@pytest.fixture
def serve(model):
    """Starts a server of the model with some faults to come."""
    servers = []

    def start(faults=(), slots=8):
        engine = SlotEngine(model, STOP, slots, WINDOW)
        server = EngineServer(engine, STOP, VOCABULARY, "tiny", handler=Faulty)
        server.faults, server.seen, server.lock = list(faults), 0, threading.Lock()
        server.handle_error = lambda *_: None  # a client that went away is part of the test
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def remote(*servers, wire="vllm", **options):
    urls = [server if isinstance(server, str) else server.url for server in servers]
    options = {"timeout": 0.5, "backoff": 0.02, "retries": 3} | options
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
    with remote(server) as decoder:
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
    assert "no server is left" in str(error.value)


def test_replicas_share_the_load(serve):
    servers = [serve(), serve(), serve()]
    with remote(*servers) as decoder:
        drain(decoder, count=60)
    seen = [server.seen for server in servers]
    assert min(seen) > sum(seen) / 6


def test_a_request_that_is_refused_ends_the_run_at_once(serve):
    server = serve()
    decoder = RemoteDecoder([server.url], WIRES["vllm"], {5}, VOCABULARY, capacity=4)
    with decoder, pytest.raises(ServerError, match=r"refused a request \(400: .*stop_token_ids"):
        drain(decoder)
    assert server.seen < 30


@pytest.mark.parametrize(
    "change, said",
    [
        ({"prompt": "text"}, "prompt: allowed"),
        ({"prompt": [VOCABULARY]}, "prompt: allowed"),
        ({"prompt": []}, "at least one of each"),
        ({"max_tokens": WINDOW}, f"{WINDOW} together"),
        ({"temperature": -1}, "temperature -1"),
        ({"seed": "x"}, "seed 'x'"),
        ({"stop_token_ids": [7]}, "with which the server was started"),
    ],
)
def test_what_a_server_refuses(serve, change, said):
    body = {"prompt": [6, 7], "max_tokens": 4, "temperature": 0.0} | change
    answer = httpx.post(serve().url + "/v1/completions", json=body)
    assert answer.status_code == 400 and said in answer.json()["error"]


def test_other_requests_of_a_server(serve):
    url = serve().url
    assert httpx.get(url + "/health").status_code == 200
    assert httpx.get(url + "/v1/models").json()["data"][0]["id"] == "tiny"
    assert httpx.get(url + "/x").status_code == httpx.post(url + "/x", json={}).status_code == 404
    assert httpx.post(url + "/generate", content=b"{").status_code == 400
    assert httpx.post(url + "/generate", json={"no": 1}).status_code == 400


def test_an_engine_fault_is_a_500_for_everyone_and_the_server_goes_on(serve, monkeypatch):
    server = serve()
    engine, step = server._engine, server._engine.step
    broken = iter([True])

    def once():
        if next(broken, False):
            raise FloatingPointError("the model's logits are not finite")
        return step()

    monkeypatch.setattr(engine, "step", once)
    body = {"prompt": [6, 7], "max_tokens": 4, "temperature": 0.0}
    answer = httpx.post(server.url + "/v1/completions", json=body)
    assert answer.status_code == 500 and "not finite" in answer.json()["error"]
    assert httpx.post(server.url + "/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize("queued", [False, True])
def test_a_request_whose_client_has_gone_is_decoded_no_further(serve, monkeypatch, queued):
    server = serve(slots=1)
    engine, step, steps = server._engine, server._engine.step, Counter()

    def slow():
        time.sleep(0.03)
        steps["all"] += 1
        return step()

    bodies = [{"prompt": prompt, "max_tokens": WINDOW - len(prompt), "temperature": 1.0, "seed": seed}
              for prompt in prompts(3) for seed in range(8)]  # fmt: skip
    url = server.url + "/v1/completions"
    answers = [httpx.post(url, json=body).json()["choices"][0]["token_ids"] for body in bodies[:8]]
    longest = max(range(8), key=lambda number: len(answers[number]))
    assert len(answers[longest]) > 20, "it takes 0.6 s at least"
    monkeypatch.setattr(engine, "step", slow)
    with ThreadPoolExecutor() as pool:
        for number in [longest, longest] if queued else [longest]:
            pool.submit(httpx.post, url, json=bodies[number], timeout=0.15)
    while engine.busy or not server._waiting.empty():
        time.sleep(0.01)
    assert steps["all"] < len(answers[longest])
    monkeypatch.undo()
    assert httpx.post(url, json=bodies[longest]).json()["choices"][0]["token_ids"] == answers[longest]


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
