"""Chunks of a run, each in a tree of its own that has nothing but the code and what was carried."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apr.core.errors import DataError
from apr.core.files import trainer_states
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
    "sft.tokens.apr": 200_000,
    "rl.policies.sos_plus": None,
    "rl.policies.apr_max": None,
    "rl.steps": 120,
    "eval.problems": 2,
    "eval.latency_problems": 1,
    "eval.bootstrap": 10,
    "eval.sweeps": {"parallel": {"models": ["apr"], "stages": ["sft", "rl"], "temperatures": [1.0]}},
}  # fmt: skip
"""Smoke with one chain of models."""


@pytest.fixture(scope="module")
def without(tmp_path_factory) -> Path:
    """A directory for PYTHONPATH: neither Snakemake nor DVC can be imported."""
    folder = tmp_path_factory.mktemp("without")
    for package in ("snakemake", "dvc"):
        (folder / f"{package}.py").write_text("raise ImportError(__name__)")
    return folder


def small(path: Path, without: Path) -> Laboratory:
    laboratory = new_laboratory(path)
    for key, value in FEW.items():
        laboratory.set(key, value)
    laboratory.environment["PYTHONPATH"] = str(without)
    return laboratory


def alike(laboratory: Laboratory, path: Path) -> Laboratory:
    """A copy of another."""
    other = Laboratory(shutil.copytree(laboratory.path, path, symlinks=True))
    other.environment = laboratory.environment
    return other


def hashes(laboratory: Laboratory) -> dict[str, str]:
    data = laboratory.path / "data"
    return {str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest()
            for kind in HASHED for path in data.rglob(kind)}  # fmt: skip


def whole_json(path: Path) -> bool:
    """Not one that is being written, or that goes with its folder."""
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False


def chunk(laboratory: Laboratory, carry: Path, minutes: float, until: str = "") -> tuple[dict, dict, str]:
    """What a chunk says of each job, at the end, and on stderr; it is told to end as soon as a file matches
    the pattern `until`."""
    command = [sys.executable, "-m", "apr", "chunk", f"--minutes={minutes}", f"--carry={carry}"]
    said, errors = carry.with_name("said"), carry.with_name("errors")
    with said.open("w") as out, errors.open("w") as err:
        started = subprocess.Popen(command, cwd=laboratory.path, env=laboratory.environment,
                                   stdout=out, stderr=err)  # fmt: skip
        while until and not any(map(whole_json, laboratory.path.glob(until))) and started.poll() is None:
            time.sleep(0.01)
        if until:
            started.send_signal(signal.SIGTERM)
        try:
            started.wait(600)
        finally:
            laboratory.kill_all()
    assert said.read_text(), errors.read_text()
    *jobs, last = map(json.loads, said.read_text().splitlines())
    return {line["job"]: line for line in jobs}, last, errors.read_text()


def test_chunks_on_fresh_machines_make_what_one_run_makes(tmp_path, without):
    carry, whole = tmp_path / "carry", small(tmp_path / "whole", without)
    machines = [alike(whole, tmp_path / f"machine{number}") for number in range(4)]
    chunk(whole, tmp_path / "unused", 20, "data/models/rl/apr/recipe.json")
    expected = hashes(whole)
    assert len(expected) == 7

    jobs, last, _ = chunk(machines[0], carry, 20, "data/models/sft/apr.work/checkpoint-*/trainer_state.json")
    assert list(jobs) == ["problems", "tokenizer", "traces/apr", "sft/apr"] and jobs["sft/apr"]["stopped"]
    state = trainer_states(machines[0].path / "data/models/sft/apr.work")[-1]
    assert last["carried"] == [f"sft/apr ({state.name})"] and "sft/apr" in last["left"]
    pace = (machines[0].path / "data/models/sft/apr.work/seconds.jsonl").read_text().splitlines()

    jobs, last, _ = chunk(machines[1], carry, 0.001)
    assert not jobs and last["carried"] == [f"sft/apr ({state.name})"], "nothing is made, and nothing lost"
    assert last["made"] == 0

    jobs, last, _ = chunk(machines[2], carry, 20, "data/models/rl/apr.work/checkpoint-*/trainer_state.json")
    assert {"steps", "tokens", "loss", "seconds"} <= jobs["sft/apr"].keys() and jobs["rl/apr"]["stopped"]
    assert last["carried"][0] == "sft/apr" and last["carried"][1].startswith("rl/apr (checkpoint-")
    seconds = (machines[2].path / "data/models/sft/apr.seconds.jsonl").read_text().splitlines()
    assert len(pace) >= 5 and seconds[: len(pace)] == pace, "with its speeds"

    faults = {"latency": ("    engine, named =", "raise RuntimeError('broken')"),
              "teacher": ("    task = open_task", "import os; os.kill(os.getpid(), 9)")}  # fmt: skip
    for name, (start, fault) in faults.items():
        path = machines[3].path / f"apr/evaluation/{name}.py"
        path.write_text(path.read_text().replace(start, f"    {fault}\n{start}", 1))
    jobs, last, errors = chunk(machines[3], carry, 20)
    assert "sft/apr" not in jobs and "rl/apr" in jobs, "only RL went on"
    assert hashes(machines[3]).items() >= expected.items()
    assert not (machines[3].path / "data/models/rl/apr.work").exists()
    broken = [jobs[name]["error"] for name in ("latency", "teacher/apr")]
    assert broken == ["RuntimeError: broken", "exit code -9"]
    assert errors == "apr: error: latency, teacher/apr failed; what was done is packed\n"
    assert jobs["evaluate/rl/apr"]["points"][0]["temperature"] == 1.0
    made = ["sft/apr", "rl/apr", "evaluate/rl/apr", "evaluate/sft/apr"]
    assert last["carried"] == made and "figures" in last["left"] and "figures" not in jobs


def test_what_is_left_is_made_as_snakemake_makes_it(made, without, tmp_path, monkeypatch):
    """After the last chunk nothing is left to do, by whichever."""
    laboratory = alike(made, tmp_path / "machine")
    carry, data = tmp_path / "carry", laboratory.path / "data"
    shutil.rmtree(data / "models/rl/apr")
    (data / "traces/apr.parquet").unlink()
    (data / "eval/sft/apr.parquet.recipe").unlink()
    laboratory.environment = made.environment | {"PYTHONPATH": str(without)}
    jobs, last, errors = chunk(laboratory, carry, 5)
    assert (list(jobs), last["left"], errors) == (["traces/apr", "rl/apr", "evaluate/sft/apr"], [], "")
    del laboratory.environment["PYTHONPATH"]
    assert not laboratory.planned() and hashes(laboratory) == hashes(made)
    error = laboratory.run("python", "-m", "apr", "chunk", "--minutes=1", f"--carry={carry}", "--most-mb=0.3",
                           fails=True).splitlines()[-1]  # fmt: skip
    assert "MB to carry, allowed: 0.3; before compression: figures " in error


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
