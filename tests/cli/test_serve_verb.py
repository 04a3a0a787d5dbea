"""`apr serve` on an untrained model: where it listens, and what it says where it cannot."""

import socket

import httpx
import pytest

from apr.cli.main import main
from apr.engine.servers.serve import EngineServer
from tests.cli.test_solve import checkpoint, language  # noqa: F401


def test_it_serves_until_it_is_interrupted(checkpoint, capsys, monkeypatch):  # noqa: F811
    answers = []

    def wait(server):
        body = {"prompt": [6, 7], "max_tokens": 3, "model": "apr"}
        answers.append(httpx.post(server.url + "/v1/completions", json=body))
        raise KeyboardInterrupt

    monkeypatch.setattr(EngineServer, "wait", wait)
    assert main(["serve", "--checkpoint", checkpoint, "--host", "::1", "--port", "0"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{checkpoint} at http://[::1]:") and said[1:] == ["ended"]
    assert answers[0].status_code == 200


@pytest.mark.parametrize("host", ["no.such.host.invalid", "8.8.8.8", "", "a..b"])
def test_a_host_that_is_none_is_one_line(host, capsys):
    check(["--host", host], capsys)


@pytest.mark.parametrize("port", ["-1", "65536", "1" * 30])
def test_a_port_that_is_none_is_one_line(port, capsys):
    check(["--port", port], capsys)


def test_a_port_that_is_taken_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check(["--port", str(taken.getsockname()[1])], capsys)


def check(options, capsys):
    assert main(["serve", "--checkpoint", "nothing", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("apr: error: cannot listen at host ")
