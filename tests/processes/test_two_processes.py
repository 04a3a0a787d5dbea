"""Two processes, started as `accelerate launch` starts them, train what one does."""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from apr.core.errors import ParamsError
from apr.training.rl.train import check_params, train_rl
from apr.training.sft.train import train_sft
from apr.training.sharding import sharded
from tests.conftest import BIN, ROOT

SAME = ("step", "reward", "children", "total_tokens", "sequential_tokens", "zero_variance_groups")
CLOSE = ("loss", "kl", "grad_norm", "clip_share", "entropy")


@pytest.fixture(scope="session")
def one(data, make_params, params, problems, validation, checkpoint, serve, tmp_path_factory):
    """What one process trains: per name the parameters, the stage, its arguments but `out`, the result.

    In RL each of two processes has one and a half of three groups, and micro-batches in which nothing is
    scored.
    """
    root, runs = tmp_path_factory.mktemp("one"), {}
    for optimizer in ("muon", "adamw"):
        settings = make_params(sft={"optimizer": optimizer})
        paths = data / "traces.parquet", data / "tokenizer"
        train_sft(settings, "apr", *paths, root / optimizer)
        arguments = {"method": "apr", "traces": paths[0], "tokenizer": paths[1]}
        out = root / optimizer
        runs[optimizer] = SimpleNamespace(params=settings, stage="sft", arguments=arguments, out=out)
    # With momentum, and a step without signal, in which nothing moves.
    lora = {"lora": {"rank": 4, "alpha": 8}, "optimizer": "adamw", "prompts": 1, "steps": 5}
    served = {"servers": {"backend": "sglang", "endpoints": [serve().url]}}
    for name, change in (("rl", {}), ("lora", lora), ("served", served | lora)):
        few = {"prompts": 3, "group": 2, "rows_per_device": 1} | change
        settings = type(params).model_validate(params.model_dump() | {"rl": params.model_dump()["rl"] | few})
        with pytest.MonkeyPatch.context() as patch:  # as in verbs.py
            patch.setattr("apr.training.rl.trainer.quickest", lambda device: torch.float32)
            train_rl(settings, "apr", problems, validation, checkpoint, root / name)
        arguments = {"policy": "apr", "problems": problems, "validation": validation,
                     "checkpoint": checkpoint}  # fmt: skip
        runs[name] = SimpleNamespace(params=settings, stage="rl", arguments=arguments, out=root / name)
    return runs


def jobs_of(run, folder, fsdp, killed_in):
    """To run in two processes what `run` was in one, and again after a kill."""
    folder.mkdir()
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(run.params.model_dump(mode="json"), file)
    arguments = {name: str(value) for name, value in (run.arguments | {"out": folder / "out"}).items()}
    return [(fsdp, run.stage, arguments, str(folder), update) for update in dict.fromkeys((killed_in, None))]


def launch(jobs, work):
    """Runs `jobs` in two processes; what they say."""
    (work / "jobs.json").write_text(json.dumps(jobs))
    command = [BIN / "accelerate", "launch", "--config_file", ROOT / "profiles/accelerate/fsdp.yaml",
               "-m", "tests.processes.verbs", work / "jobs.json"]  # fmt: skip
    done = subprocess.run(
        [str(part) for part in command], cwd=work, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return done.stderr


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_run(one, out, same, close, atol):
    """The run in `out` is that of `one`: figures `same` are equal, `close` to a tolerance each, weights to
    `atol`."""
    assert json.loads((out / "metrics.json").read_text())["processes"] == 2
    first, second = log(one.out), log(out)
    assert [[line[name] for name in same] for line in second] == [
        [line[name] for name in same] for line in first
    ]
    for name, tolerance in close.items():
        expected = pytest.approx([line[name] for line in first], abs=tolerance)
        assert [line[name] for line in second] == expected, name
    before, after = (load_file(path / "model.safetensors") for path in (one.out, out))
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=atol, rtol=0)
    assert not out.with_name("out.work").exists()


def seen(folder):
    """Of every micro-batch of both processes: number of the update, shares of the weights and the state."""
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_have_the_losses_of_one(one, tmp_path):
    """With whole weights, and with half of them each (FSDP2); some of the latter are killed and go on from
    their state of the update before."""
    whole = {"muon": None, "rl": None}
    halves = {"muon": 3, "adamw": 3, "rl": 3, "lora": None, "served": None}
    jobs = [jobs_of(one[name], tmp_path / f"whole-{name}", False, update) for name, update in whole.items()]
    jobs += [jobs_of(one[name], tmp_path / f"half-{name}", True, update) for name, update in halves.items()]
    said = launch(sum(jobs, []), tmp_path)
    steps = len(log(one["muon"].out))
    assert said.count(f"sft apr: {steps}/{steps}") == 3, "the first process alone says how far it is"
    assert any(line["zero_variance_groups"] for line in log(one["rl"].out))
    assert any(line["clip_share"] is None for line in log(one["lora"].out))
    for folder in [f"whole-{name}" for name in whole] + [f"half-{name}" for name in halves]:
        name, out = folder.split("-")[1], tmp_path / folder / "out"
        if name in ("muon", "adamw"):
            assert_same_run(one[name], out, ("step", "tokens"), {"loss": 1e-3}, 2e-3)
        else:
            assert_same_run(one[name], out, SAME, dict.fromkeys(CLOSE, 1e-4), 1e-4)
    for name in whole:
        assert all(weights == 1 for process in seen(tmp_path / f"whole-{name}") for _, weights, _ in process)
    for name, update in halves.items():
        for process in seen(tmp_path / f"half-{name}"):
            assert process[0][0] == (update - 1 if update else 0), "the state that it went on from"
            parts = [part for _, *parts in process for part in parts if part is not None]
            assert parts == pytest.approx([0.5] * len(parts), abs=0.05)
    assert (tmp_path / "half-lora/out/adapter/adapter_model.safetensors").is_file()


def test_rows_that_do_not_split_are_an_error(data, make_params, params, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ParamsError, match="rows_per_step: 2 is not allowed; allowed: a multiple of 3"):
        train_sft(make_params(), "apr", data / "traces.parquet", data / "tokenizer", tmp_path / "out")
    with pytest.raises(ParamsError, match="prompts \\* rl.group / processes = 16 / 3"):
        check_params(params, "apr")


def test_the_first_fsdp_is_an_error(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ParamsError, match="fsdp_version: 1 is not allowed; allowed: 2"):
        sharded()
