"""What a server does with whatever comes in: one line for what is wrong, and everybody else is served."""

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from apr.core.errors import CheckpointError, ServerError
from apr.engine.servers import serve as module
from apr.engine.servers.serve import EngineServer, listen
from apr.engine.slots import SlotEngine

VOCABULARY, WINDOW = 23, 48
STOP = frozenset(range(3))
HTTP = httpx.Client(timeout=60.0)
GOOD = {"prompt": [6, 7], "max_tokens": 4, "temperature": 0.0}
GENERATE = {"input_ids": [6, 7], "sampling_params": {"max_new_tokens": 4, "temperature": 0.0}}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama(VOCABULARY, WINDOW, num_attention_heads=2, num_key_value_heads=2)


@pytest.fixture
def serve(model):
    with ExitStack() as running:

        def start(slots=8, **options):
            engine = SlotEngine(model, STOP, slots, WINDOW)
            return running.enter_context(EngineServer(engine, "tiny", **options))

        yield start


@pytest.fixture(scope="module")
def shared(model):
    with EngineServer(SlotEngine(model, STOP, 8, WINDOW), "tiny") as server:
        yield server


def refused(answer, status=400):
    """What was wrong, in one line of JSON."""
    assert answer.status_code == status and answer.headers["content-type"] == "application/json"
    (said,) = answer.json().values()
    assert isinstance(said, str) and said and "\n" not in said and len(said) < 400
    return said


WRONG = [
    ({"prompt": "text"}, "prompt 'text'"),
    ({"prompt": ["6"]}, "prompt.0 '6'"),
    ({"prompt": [True]}, "prompt.0 True"),
    ({"prompt": [6.0]}, "prompt.0 6.0"),
    ({"prompt": [[6], [7]]}, "prompt.0 [6]"),
    ({"prompt": [VOCABULARY]}, "prompt: allowed"),
    ({"prompt": [-1]}, "prompt: allowed"),
    ({"prompt": [10**30]}, "prompt: allowed"),
    ({"prompt": []}, "at least one of each"),
    ({"prompt": [6] * WINDOW}, f"{WINDOW} together"),
    ({"prompt": [6] * 1000}, f"{WINDOW} together"),
    ({"prompt": None}, "prompt None"),
    ({"max_tokens": WINDOW}, f"{WINDOW} together"),
    ({"max_tokens": 0}, "at least one of each"),
    ({"max_tokens": -3}, "at least one of each"),
    ({"max_tokens": 10**30}, "at least one of each"),
    ({"max_tokens": True}, "max_tokens True"),
    ({"max_tokens": "4"}, "max_tokens '4'"),
    ({"max_tokens": 4.5}, "max_tokens 4.5"),
    ({"max_tokens": None}, "max_tokens None"),
    ({"temperature": -1}, "temperature -1"),
    ({"temperature": float("nan")}, "temperature nan"),
    ({"temperature": float("inf")}, "temperature inf"),
    ({"temperature": float("-inf")}, "temperature -inf"),
    ({"temperature": "hot"}, "temperature 'hot'"),
    ({"temperature": True}, "temperature True"),
    ({"temperature": None}, "temperature None"),
    ({"seed": "x"}, "seed 'x'"),
    ({"seed": -1}, "seed -1"),
    ({"seed": 1.0}, "seed 1.0"),
    ({"seed": True}, "seed True"),
    ({"seed": 9223372036854775808}, "seed 9223372036854775808"),
    ({"seed": 10**40}, "seed 1"),
    ({"stop_token_ids": [7]}, "with which the server was started"),
    ({"stop_token_ids": []}, "with which the server was started"),
    ({"stop_token_ids": "0"}, "stop_token_ids '0'"),
    ({"n": 2}, "n: 2 is not supported; allowed: [1, None]"),
    ({"n": True}, "n: True is not supported"),
    ({"best_of": 3}, "best_of: 3"),
    ({"stream": True}, "stream: True"),
    ({"stream": 0}, "stream: 0"),
    ({"echo": True}, "echo: True"),
    ({"stop": ["x"]}, "stop: ['x']"),
    ({"stop": "x" * 10_000}, "stop: 'x"),
    ({"top_p": 0.9}, "top_p: 0.9"),
    ({"top_p": float("nan")}, "top_p: nan"),
    ({"top_k": 5}, "top_k: 5"),
    ({"logit_bias": {"7": 1}}, "logit_bias: {'7': 1}"),
    ({"logprobs": 5}, "logprobs: 5"),
    ({"presence_penalty": 1.0}, "presence_penalty: 1.0"),
    ({"suffix": "x"}, "suffix: 'x'"),
    ({"max_token": 4}, "max_token: unknown key"),
    ({"__class__": 4}, "__class__: unknown key"),
]
OFF = {"n": 1, "best_of": None, "stream": False, "echo": False, "top_p": 1.0, "stop": None,
       "logit_bias": None, "logprobs": 0, "suffix": None, "seed": None, "model": None,
       "stop_token_ids": [2, 1, 0], "frequency_penalty": 0.0, "ignore_eos": True}  # fmt: skip


@pytest.mark.parametrize("change, said", WRONG)
def test_a_body_that_asks_for_what_there_is_not(shared, change, said):
    raw = json.dumps(GOOD | change)
    assert said in refused(HTTP.post(shared.url + "/v1/completions", content=raw))
    names = {"max_tokens": "max_new_tokens", "seed": "sampling_seed"}
    ((key, value),) = change.items()
    settings = GENERATE["sampling_params"] | {names.get(key, key): value}
    body = {"input_ids": value} if key == "prompt" else {"sampling_params": settings}
    refused(HTTP.post(shared.url + "/generate", content=json.dumps(GENERATE | body)))


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"null", b"[]", b"3", b'"x"', b"\xff\xfe", b'{"prompt": "\xff"}', b"{} {}", b"[" * 100_000,
     b'{"prompt": [6], "max_tokens": 4, "seed": ' + b"9" * 10_000 + b"}", b"\xef\xbb\xbf{}",
     b'{"prompt": [6], "max_tokens": 1e999}', b'{"x": NaN, "prompt": [6], "max_tokens": 1}', b'{"no": 1}',
     b'{"prompt": [6], "max_tokens": 4, "user": "\\ud800"}', b"\x1f\x8b\x08\x00gzip"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/completions", "/generate", "/update_weights_from_disk"])
def test_a_body_that_is_none(shared, path, raw):
    refused(HTTP.post(shared.url + path, content=raw))


@pytest.mark.parametrize("key", OFF)
def test_an_option_that_is_off_changes_nothing(shared, key):
    url = shared.url + "/v1/completions"
    plain, off = (HTTP.post(url, json=body) for body in (GOOD, GOOD | {key: OFF[key]}))
    assert plain.status_code == off.status_code == 200 and plain.json() == off.json()


def test_another_model_is_not_here(shared):
    answer = HTTP.post(shared.url + "/v1/completions", json=GOOD | {"model": "gpt-4"})
    assert "model: 'gpt-4' is not served; allowed: tiny" in refused(answer, 404)
    assert HTTP.post(shared.url + "/v1/completions", json=GOOD | {"model": "tiny"}).status_code == 200


def test_without_a_seed_each_request_has_its_own(shared):
    body = {"prompt": [6, 7], "max_tokens": 20, "temperature": 1.0}
    url = shared.url + "/v1/completions"

    def sampled(**options):
        return tuple(HTTP.post(url, json=body | options).json()["choices"][0]["token_ids"])

    free, fixed = {sampled() for _ in range(8)}, {sampled(seed=3) for _ in range(4)}
    assert len(free) > 4 and len(fixed) == 1
    nearly = HTTP.post(url, json=body | {"temperature": 1e-320}).json()  # a division by it would be infinite
    assert nearly == HTTP.post(url, json=body | {"temperature": 0}).json()
    assert HTTP.post(url, json=body | {"temperature": 1e308, "seed": (1 << 63) - 1}).status_code == 200


def test_paths_and_methods(shared):
    url = shared.url
    assert HTTP.get(url + "/health").status_code == 200
    assert HTTP.get(url + "/v1/models").json()["data"][0]["id"] == "tiny"
    for path in ("/x", "/", "/v1/completions/", "/generate/x", "/%00", "//health"):
        assert path in refused(HTTP.post(url + path, json={}), 404) or path == "/%00"
        refused(HTTP.get(url + path), 404)
    for method, path in (("GET", "/generate"), ("PUT", "/v1/completions"), ("DELETE", "/v1/models"),
                         ("POST", "/health"), ("OPTIONS", "/generate")):  # fmt: skip
        assert method in refused(HTTP.request(method, url + path), 405)


def said_to(server, raw, half_close=False):
    """The status and the body of each answer to `raw`."""
    host, port = server._socket.getsockname()
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(raw)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        while part := connection.recv(1 << 16):
            found += part
    heads = [head.partition(b"\r\n\r\n") for head in found.split(b"HTTP/1.1 ")[1:]]
    return [(int(head[:3]), json.loads(body)) for head, _, body in heads]


def post(body, *headers, path="/v1/completions"):
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode() + body


def test_chunked_bodies_are_bodies(serve, shared):
    raw = json.dumps(GOOD).encode()
    parts = [raw[:7], raw[7:]]
    assert HTTP.post(shared.url + "/v1/completions", content=iter(parts)).status_code == 200
    refused(HTTP.post(shared.url + "/v1/completions", content=iter([b"{", b"no"])))
    chunks, close = b"ZZ\r\nxx\r\n0\r\n\r\n", "Connection: close"
    ((status, body),) = said_to(shared, post(chunks, "Transfer-Encoding: chunked", close))
    assert status == 400 and list(body) == ["error"]
    cut = post(b"5\r\n{}", "Transfer-Encoding: chunked", close)
    ((status, body),) = said_to(shared, cut, half_close=True)
    assert status == 400 and list(body) == ["error"]


@pytest.mark.parametrize("length", ["-5", "abc", "1e3", "", "0x10", "5, 6", "9" * 30, None, "0"])
def test_a_content_length_that_is_none(shared, length):
    raw = json.dumps(GOOD).encode()
    headers = [] if length is None else [f"Content-Length: {length}"]
    answers = said_to(shared, post(raw, *headers, "Connection: close"))
    assert {status for status, _ in answers} <= {400, 413} and answers
    assert all(list(body) == ["error"] and "\n" not in body["error"] for _, body in answers)


def test_a_content_length_that_is_wrong(shared, serve, monkeypatch):
    raw = json.dumps(GOOD).encode()

    def length(change):
        return post(raw, f"Content-Length: {len(raw) + change}", "Connection: close")

    assert [status for status, _ in said_to(shared, length(0))] == [200]
    assert [status for status, _ in said_to(shared, length(-5))] == [400]
    assert [status for status, _ in said_to(shared, length(100), half_close=True)] == [400]
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)
    ((status, body),) = said_to(shared, length(100))
    assert status == 400 and "did not come to its end" in body["error"]


@pytest.mark.parametrize("raw", [b"nonsense\r\n\r\n", b"GET /\r\n\r\n", b"\x16\x03\x01\x00\x00\r\n\r\n",
                                 b"POST /generate HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                                 b"GET /health HTTP/1.1\r\nX: " + b"y" * 100_000])  # fmt: skip
def test_what_is_no_http(shared, raw):
    ((status, body),) = said_to(shared, raw)
    assert status == 400 and list(body) == ["error"]


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body(shared, chunked):
    raw = json.dumps(GOOD | {"user": "x" * (4 << 20)}).encode()
    parts = (raw[start : start + (1 << 16)] for start in range(0, len(raw), 1 << 16))
    answer = HTTP.post(shared.url + "/v1/completions", content=parts if chunked else raw)
    assert "too large" in refused(answer, 413)


def test_valid_requests_beside_bad_ones_are_served_as_alone(shared):
    def body(number):
        return {"prompt": [6 + number % 16, 7], "max_tokens": 1 + number % 12, "temperature": number % 3 / 2,
                "seed": number}  # fmt: skip

    async def main():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=shared.url, timeout=60, limits=limits) as client:

            def post(number, **change):
                return client.post("/v1/completions", content=json.dumps(body(number) | change))

            alone = [await post(number) for number in range(100)]
            bad = [post(0, **change) for change, _ in WRONG]
            bad += [client.post("/generate", content=b"\xff"), client.get("/x"), client.put("/generate")]
            found = await asyncio.gather(*bad[::2], *map(post, range(100)), *bad[1::2])
            middle = slice(len(bad[::2]), len(bad[::2]) + 100)
            return alone, found[middle], [*found[: middle.start], *found[middle.stop :]]

    alone, good, bad = asyncio.run(main())
    assert Counter(answer.status_code for answer in good) == {200: 100}
    ids, others = ([answer.json()["choices"][0]["token_ids"] for answer in each] for each in (good, alone))
    assert ids == others
    assert {answer.status_code for answer in bad} == {400, 404, 405}


def failing(engine, times):
    """A `step` that fails so often."""
    step = engine.step

    def stepping():
        if times and times.pop():
            raise KeyError("no such slot")  # of the kind that a bad body would raise
        return step()

    return stepping


def test_an_engine_fault_is_a_500_for_everyone_and_the_server_goes_on(serve, monkeypatch, caplog):
    server = serve()
    engine = server.batches.engine
    monkeypatch.setattr(engine, "step", failing(engine, [True]))
    answer = HTTP.post(server.url + "/v1/completions", json=GOOD)
    assert "the engine has failed: 'no such slot'" in refused(answer, 500)
    assert "the engine has failed" in caplog.text and "Traceback" in caplog.text
    assert HTTP.post(server.url + "/v1/completions", json=GOOD).status_code == 200
    monkeypatch.setattr(engine, "open", lambda *_: {}["no"])
    assert "KeyError" in refused(HTTP.post(server.url + "/v1/completions", json=GOOD), 500)
    monkeypatch.undo()
    assert HTTP.post(server.url + "/v1/completions", json=GOOD).status_code == 200


@pytest.mark.parametrize("queued", [False, True])
def test_a_request_whose_client_has_gone_is_decoded_no_further(serve, monkeypatch, queued):
    server = serve(slots=1)
    engine, steps = server.batches.engine, Counter()
    step = engine.step

    def slow():
        time.sleep(0.03)
        steps["all"] += 1
        return step()

    prompts = [[6 + (key * 7 + place * 3) % 16 for place in range(1 + key % 9)] for key in range(3)]
    bodies = [{"prompt": prompt, "max_tokens": WINDOW - len(prompt), "temperature": 1.0, "seed": seed}
              for prompt in prompts for seed in range(8)]  # fmt: skip
    url = server.url + "/v1/completions"
    answers = [HTTP.post(url, json=body).json()["choices"][0]["token_ids"] for body in bodies[:8]]
    longest = max(range(8), key=lambda number: len(answers[number]))
    assert len(answers[longest]) > 20, "it takes 0.6 s at least"
    monkeypatch.setattr(engine, "step", slow)
    with ThreadPoolExecutor() as pool:
        for number in [longest, longest] if queued else [longest]:
            pool.submit(HTTP.post, url, json=bodies[number], timeout=0.15)
    while engine.busy or server.batches._waiting:
        time.sleep(0.01)
    assert steps["all"] < len(answers[longest])
    monkeypatch.undo()
    assert HTTP.post(url, json=bodies[longest]).json()["choices"][0]["token_ids"] == answers[longest]


def test_new_weights_wait_for_what_is_open_and_a_fault_keeps_the_old_ones(serve, model):
    asked = []

    def load(directory):
        asked.append(directory.name)
        if directory.name == "bad":
            raise CheckpointError("bad: no such checkpoint directory")
        if directory.name == "broken":
            raise RuntimeError("out of memory")
        return model

    server = serve(load=load)
    url = server.url + "/update_weights_from_disk"

    def update(name, **options):
        return HTTP.post(url, json={"model_path": name, "weight_version": name} | options)

    answer = update("bad")
    assert answer.status_code == 400 and answer.json() == {
        "success": False, "message": "bad: no such checkpoint directory"
    }  # fmt: skip
    assert "RuntimeError" in refused(update("broken"), 500)
    refused(update("good", abort_all_requests=True))
    refused(update(""))
    assert server.batches.version == "default" and asked == ["bad", "broken"]
    with ThreadPoolExecutor() as pool:
        bodies = [GENERATE | {"sampling_params": {"max_new_tokens": 40, "sampling_seed": seed}}
                  for seed in range(20)]  # fmt: skip
        answers = [pool.submit(HTTP.post, server.url + "/generate", json=body) for body in bodies]
        assert update("good", flush_cache=True).json()["success"]
        assert all(each.result().status_code == 200 for each in answers)
    found = HTTP.post(server.url + "/generate", json=GENERATE).json()
    assert found["meta_info"]["weight_version"] == server.batches.version == "good"
    assert HTTP.post(serve().url + "/update_weights_from_disk", json={"model_path": "x"}).status_code == 400


def test_where_a_server_listens(serve, tmp_path):
    six = serve(listener=listen("::1", 0))
    assert six.url.startswith("http://[::1]:") and HTTP.get(six.url + "/health").status_code == 200
    here = serve(listener=listen("localhost", 0))
    assert here.url.startswith("http://127.0.0.1:") and HTTP.get(here.url + "/health").status_code == 200
    taken = here._socket.getsockname()[1]
    hosts = ("no.such.host.invalid", "999.1.1.1", "", "a b", "8.8.8.8", "x" * 100, "a..b", "http://x",
             "2001:db8::1", "a\0b")  # fmt: skip
    ports = (taken, -1, 65536, 10**30)
    for host, port in [(host, 0) for host in hosts] + [("127.0.0.1", port) for port in ports]:
        with pytest.raises(ServerError, match=r"cannot listen at host .*, port -?\d+: ") as error:
            listen(host, port)
        assert "\n" not in str(error.value)


def test_a_server_ends_with_its_context(model):
    threads = threading.active_count()
    with EngineServer(SlotEngine(model, STOP, 8, WINDOW), "tiny") as server:
        url = server.url
        assert HTTP.get(url + "/health").status_code == 200
    with pytest.raises(httpx.ConnectError):
        HTTP.get(url + "/health")
    assert threading.active_count() == threads
