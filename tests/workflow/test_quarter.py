"""What holds a quarter of an hour together: steps that fail, hang, or have no time; what is left out."""

import json
import shutil
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from apr.pipeline.plan import load_scale
from apr.training.attention import packed_attention
from workflow.gpu import quarter, steps
from workflow.gpu.quarter import Quarter, main
from workflow.gpu.work import Step


def hang(place) -> None:
    place.say(loss=0.5)
    time.sleep(60)


def fail(place) -> None:
    raise ValueError("no such thing\nas this")


def tell(place) -> None:
    place.say(left=place.work.end - time.monotonic(), without=place.work.without)


def outcomes(place) -> None:
    for test, outcome in ("test_flex_a", "passed"), ("test_flex_b", "failed"), ("test_graphs_a", "passed"):
        place.say(test=f"x.py::{test}", outcome=outcome)


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Does steps by the names of functions in the given seconds; returns the exit code and the figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(steps, "STEPS", {"tests": outcomes, "check": tell, "traces": hang, "hang": hang,
                                         "fail": fail, "tell": tell})  # fmt: skip
    monkeypatch.setattr(steps, "place_of", lambda work: steps.Place(work, None))
    monkeypatch.setattr(quarter, "get_context", lambda kind: Forks())
    monkeypatch.setattr(Quarter, "install", lambda self: None)

    def do(*names: str, seconds: float = 60, options: tuple[str, ...] = ()):
        given = ("quarter", "carry", "--out", "out", "--seconds", str(seconds), *options)
        monkeypatch.setattr(quarter, "STEPS", tuple(Step(name, 20 - 15 * (name == "hang")) for name in names))
        monkeypatch.setattr(sys, "argv", [*given])
        main()
        printed = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
        kept = [json.loads(line) for line in Path("out/figures.jsonl").read_text().splitlines()]
        assert printed[-1]["name"] == "end" and printed[-1]["left"] > -6
        assert sorted(map(str, kept)) == sorted(map(str, printed[:-1]))
        return kept

    return do


class Forks:
    """Forks of the test, that have its steps."""

    Process = get_context("fork").Process

    def set_forkserver_preload(self, modules) -> None:
        assert modules == ["workflow.gpu.steps"]


def test_a_step_that_fails_or_hangs_ends_no_other(run):
    by_name = {}
    for line in run("fail", "hang", "tell"):
        by_name.setdefault(line["name"], []).append(line)
    assert by_name["fail"][0]["error"] == "ValueError: no such thing" and by_name["fail"][1]["exit"] == 1
    figures, ended = by_name["hang"]
    assert figures["loss"] == 0.5 and ended["stopped"] and ended["exit"] < 0 and ended["seconds"] < 15
    assert 10 < by_name["tell"][0]["left"] <= 20 and by_name["tell"][1]["exit"] == 0
    assert by_name["traces"][-1]["stopped"]  # in the background, until the end


def test_steps_have_what_is_left(run):
    told = run("tell", "hang", "tell", seconds=9)
    left = {line["name"]: line["left"] for line in told if "left" in line}
    assert left.keys() == {"check", "tell"} and all(0 < each <= 9 for each in left.values())
    assert [line["name"] for line in told].count("tell") == 2  # once, and not again after what hung


def test_nothing_else_is_begun_where_the_machine_is_not_as_it_has_to_be(run, monkeypatch):
    kinds = []
    monkeypatch.setattr(quarter, "get_context", lambda kind: kinds.append(kind) or Forks())
    monkeypatch.setitem(steps.STEPS, "check", fail)
    with pytest.raises(SystemExit, match="not as it has to be"):
        run("tell")
    assert "tell" not in Path("out/figures.jsonl").read_text() and kinds == ["forkserver", "spawn"]


def test_what_does_not_pass_its_tests_is_left_out_in_a_second_command_too(run, monkeypatch):
    first = run("tell", "tests", "tell")
    told = [line["without"] for line in first if line["name"] == "tell" and "without" in line]
    assert told == [[], ["flex"]]
    monkeypatch.setattr(quarter, "AGAIN", (Step("tell", 20),))
    shutil.rmtree("out")
    again = run(options=("--go-on",))
    assert [line["without"] for line in again if "without" in line] == [["flex"]]


def test_lines_are_said_until_their_file_is_at_its_place(tmp_path):
    log, final, said = tmp_path / "log", tmp_path / "final", []
    with steps.follow(SimpleNamespace(say=lambda **line: said.append(line["step"])), log, final, every=2):
        log.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 4)))
        for _ in range(100):
            time.sleep(0 if said else 0.05)
        assert said == [2]
        log.write_text(log.read_text() + '{"step": 4}\n')
        log.rename(final)
    assert said == [2, 4]


def test_attention_without_flex_is_that_by_threads():
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 12, 16), torch.randn(1, 2, 12, 16), torch.randn(1, 2, 12, 16)
    positions = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 0, 1]])
    one, _ = steps.dense(torch.nn.Module(), query, key, value, None, 0.3, position_ids=positions)
    other, _ = packed_attention(torch.nn.Module(), query, key, value, None, 0.3, position_ids=positions)
    torch.testing.assert_close(one, other)


def test_the_policy_is_held_at_the_most_children():
    params = steps.held(load_scale("gpu"))
    assert params.rl.policies["apr"].children == params.grammar.max_children == 12
    small = steps.shrunk(params)
    assert small.sft.tokens["sos_plus"] == params.sft.tokens["sos_plus"] and small.model.layers == 2
