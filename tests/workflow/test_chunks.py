"""Chunks of a run, each in a tree of its own that has nothing but the code and what was carried."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

from apr.core.errors import AprError, DataError
from apr.core.files import read_json, trainer_states
from apr.pipeline import chunk as module
from apr.pipeline.chunk import pack, unpack
from tests.conftest import Laboratory, new_laboratory

HASHED = ("*.parquet", "*.safetensors")
FEW = {
    "traces.methods.sos": None,
    "traces.methods.sos_plus": None,
    "sft.tokens.sos": None,
    "sft.tokens.sos_plus": None,
    "sft.checkpoint_steps": 5,
    "sft.tokens.apr": 80000,
    "rl.policies.sos_plus": None,
    "rl.policies.apr_max": None,
    "rl.steps": 20,
    "eval.problems": 2,
    "eval.latency_problems": 1,
    "eval.bootstrap": 10,
    "eval.sweeps": {"parallel": {"models": ["apr"], "stages": ["rl"], "temperatures": [1.0]}},
}  # fmt: skip
"""Smoke with one chain of models: chunks end when RL has."""


def small(path: Path) -> Laboratory:
    laboratory = new_laboratory(path)
    for key, value in FEW.items():
        laboratory.set(key, value)
    return laboratory


def hashes(laboratory: Laboratory) -> dict[str, str]:
    data = laboratory.path / "data"
    return {str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest()
            for kind in HASHED for path in data.rglob(kind)}  # fmt: skip


def chunk(laboratory: Laboratory, carry: Path, minutes: float, until: str = "") -> str:
    """What a chunk says; it is told to end as soon as a file matches the pattern `until`."""
    command = [sys.executable, "-m", "apr", "chunk", f"--minutes={minutes}", f"--carry={carry}"]
    output = carry.with_name("said")
    with output.open("w") as said:
        started = subprocess.Popen(command, cwd=laboratory.path, env=laboratory.environment, stdout=said,
                                   stderr=subprocess.STDOUT)  # fmt: skip
        while until and not list(laboratory.path.glob(until)) and started.poll() is None:
            time.sleep(0.02)
        if until:
            started.send_signal(signal.SIGTERM)
        try:
            started.wait(1500)
        finally:
            laboratory.kill_all()
    return output.read_text()


def left(said: str) -> set[str]:
    (line,) = [line for line in said.splitlines() if "artefacts are made; left: " in line]
    return set(line.split("left: ")[1].split(", "))


def test_chunks_on_fresh_machines_make_what_one_run_makes(tmp_path):
    carry, whole = tmp_path / "carry", small(tmp_path / "whole")
    machines = [small(tmp_path / f"machine{number}") for number in range(4)]
    whole.run("snakemake", "--cores", "2", "--", "data/models/rl/apr/recipe.json")
    expected = hashes(whole)
    assert len(expected) == 7

    said = chunk(machines[0], carry, 20, "data/models/sft/apr.work/checkpoint-*/trainer_state.json")
    assert "sft/apr (checkpoint-" in said and "sft/apr" in left(said)
    state = trainer_states(machines[0].path / "data/models/sft/apr.work")[-1]
    first = read_json(state / "trainer_state.json")["log_history"]

    said = chunk(machines[1], carry, 0.01)
    assert f"sft/apr ({state.name}); to be made again first: " in said.splitlines()[0]
    assert "sft/apr (checkpoint-" in said and "problems" in left(said), "nothing is made, and nothing lost"

    said = chunk(machines[2], carry, 20, "data/models/rl/apr.work/checkpoint-*/trainer_state.json")
    assert "rl/apr (checkpoint-" in said and "rl/apr" in left(said) and "sft/apr" not in left(said)
    log = (machines[2].path / "data/models/sft/apr/log.jsonl").read_text().splitlines()
    assert len(first) >= 5 and [json.loads(line) for line in log[: len(first)]] == first, "with its speeds"

    said = chunk(machines[3], carry, 20, "data/models/rl/apr/recipe.json")
    found, again = said.splitlines()[0].removeprefix("found: ").split("; to be made again first: ")
    assert "sft/apr" in found.split(", ")
    assert {*again.split(", ")} == {"tokenizer", "traces/apr"}, "and what they are made from"
    assert "rl/apr" not in left(said) and hashes(machines[3]).items() >= expected.items()
    logs = machines[3].path / "logs"
    assert (logs / "rl/apr.log").exists() and not (logs / "sft/apr.log").exists(), "only RL went on"
    assert not (machines[3].path / "data/models/rl/apr.work").exists()


def test_after_the_last_chunk_nothing_is_left(made, tmp_path, monkeypatch):
    carry = tmp_path / "carry"
    assert left(chunk(made, carry, 5)) == {"nothing"} and not made.planned()
    monkeypatch.chdir(made.path)
    monkeypatch.setattr(module, "work", lambda *_: False)
    with pytest.raises(AprError, match="MB to carry, allowed: 0.3; before compression: figures "):
        module.chunk(Namespace(scale="default", minutes=9, carry=carry, most_mb=0.3))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Files of 250,000 bytes that do not compress, as the working directory, and their bytes."""
    monkeypatch.setattr(module, "PART_BYTES", 100_000)
    files = {Path(name): random.Random(name).randbytes(250_000) for name in ("data/a", "data/b/c")}
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


def test_parts_are_small_and_give_back_every_byte(tree, tmp_path, monkeypatch):
    carry = tmp_path / "carry"
    sizes = pack(carry, "smoke", tree)
    assert sizes[:-1] == [100_000] * 5 and 0 < sizes[-1] < 10_000
    assert [path.stat().st_size for path in sorted(carry.glob("part-*"))] == sizes
    monkeypatch.chdir(tmp_path / "there")
    Path("data").mkdir()
    Path("data/a").write_text("newer")
    unpack(carry, "smoke")
    assert Path("data/b/c").read_bytes() == tree[Path("data/b/c")]
    assert Path("data/a").read_text() == "newer"
    assert len(pack(carry, "smoke", [Path("data/a")])) == 1
    assert sorted(path.name for path in carry.iterdir()) == ["carry.json", "part-000"]


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda carry: (carry / "part-002").unlink(), "part-002: missing"),
        (lambda carry: (carry / "part-005").write_bytes(b""), "part-005: not as it was packed"),
        (lambda carry: (carry / "part-006").write_bytes(b""), "part-006: not a part of what was packed"),
        (lambda carry: (carry / "carry.json").unlink(), "carry.json: no such file"),
        (lambda carry: None, "packed by a chunk of scale 'smoke', not 'gpu'"),
    ],
)
def test_what_is_not_whole_is_refused(tree, tmp_path, monkeypatch, change, fault):
    carry = tmp_path / "carry"
    pack(carry, "smoke", tree)
    change(carry)
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(DataError, match=fault):
        unpack(carry, "gpu" if "scale" in fault else "smoke")
    assert not list(Path().iterdir())


def test_nothing_is_written_outside_of_the_tree(tree, tmp_path, monkeypatch):
    Path("../outside").touch()
    Path("link").symlink_to("data/a")
    for name in ("../outside", "link"):
        pack(tmp_path / "carry", "smoke", [Path(name)])
        monkeypatch.chdir(tmp_path / "there")
        with pytest.raises(DataError, match="is no file of this tree"):
            unpack(tmp_path / "carry", "smoke")
        monkeypatch.chdir(tmp_path / "here")
    assert not list((tmp_path / "there").iterdir())


def test_before_the_first_chunk_there_is_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unpack(Path("carry"), "gpu")
    Path("carry").mkdir()
    unpack(Path("carry"), "gpu")
    assert not list(Path("carry").iterdir())
