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
from apr.core.process import sharded
from apr.rl.train import check_params, train_rl
from apr.sft.train import train_sft
from tests.conftest import BIN, ROOT

SAME = ("step", "reward", "children", "total_tokens", "sequential_tokens", "zero_variance_groups")
CLOSE = ("loss", "kl", "grad_norm", "clip_share", "entropy")


@pytest.fixture(scope="session")
def one(data, make_params, params, problems, validation, checkpoint, tmp_path_factory):
    """What one process trains: per name the parameters, the arguments of the verb but `--out`, the result.

    In RL each of two processes has one and a half of three groups, and micro-batches in which nothing is
    scored.
    """
    root, runs = tmp_path_factory.mktemp("one"), {}
    for optimizer in ("muon", "adamw"):
        settings = make_params(sft={"optimizer": optimizer})
        paths = data / "traces.parquet", data / "tokenizer"
        train_sft(settings, "apr", *paths, root / optimizer)
        arguments = ["sft", "--method", "apr", "--traces", paths[0], "--tokenizer", paths[1]]
        runs[optimizer] = SimpleNamespace(params=settings, arguments=arguments, out=root / optimizer)
    for name, lora in (("rl", None), ("lora", {"rank": 4, "alpha": 8})):
        few = {"prompts": 3, "group": 2, "rows_per_device": 1, "lora": lora}
        settings = type(params).model_validate(params.model_dump() | {"rl": params.model_dump()["rl"] | few})
        train_rl(settings, "apr", problems, validation, checkpoint, root / name)
        arguments = ["rl", "--policy", "apr", "--problems", problems, "--validation", validation,
                     "--checkpoint", checkpoint]  # fmt: skip
        runs[name] = SimpleNamespace(params=settings, arguments=arguments, out=root / name)
    return runs


def two(one, profile, killed_in, work):
    """Runs those of `one` that `killed_in` names in two processes; what they say, stderr alone.

    A run that is to be killed in an update is started again after it.
    """
    jobs = []
    for name, update in killed_in.items():
        (work / name).mkdir()
        with (work / name / "params.yaml").open("w") as file:
            YAML().dump(one[name].params.model_dump(mode="json"), file)
        arguments = [str(part) for part in [*one[name].arguments, "--out", work / name / "out"]]
        jobs += [(arguments, str(work / name), kill) for kill in {update: 0, None: 0}]
    (work / "jobs.json").write_text(json.dumps(jobs))
    command = [BIN / "accelerate", "launch", "--config_file", ROOT / "profiles/accelerate" / profile,
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
    """The curves of a run and its weights are those of `one`, to 1e-3 or 1e-4 and `atol`."""
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


def assert_same_sft(one, out):
    assert_same_run(one, out, ("step", "tokens"), {"loss": 1e-3}, 2e-3)


def assert_same_rl(one, out):
    assert_same_run(one, out, SAME, dict.fromkeys(CLOSE, 1e-4), 1e-4)


def test_two_processes_have_the_losses_of_one(one, tmp_path):
    said = two(one, "ddp.yaml", {"muon": None, "rl": None}, tmp_path)
    assert_same_sft(one["muon"], tmp_path / "muon/out")
    steps = len(log(one["muon"].out))
    assert said.count(f"sft apr: {steps}/{steps}") == 1, "the first process alone says how far it is"
    assert any(line["zero_variance_groups"] for line in log(one["rl"].out))
    assert_same_rl(one["rl"], tmp_path / "rl/out")


def test_two_processes_with_half_of_the_weights_each_do_too(one, tmp_path):
    """FSDP2. All runs but that of adapters are killed, and go on from their state of the update before."""
    killed_in = {"muon": 3, "adamw": 3, "rl": 3, "lora": None}
    two(one, "fsdp.yaml", killed_in, tmp_path)
    assert_same_sft(one["muon"], tmp_path / "muon/out")
    assert_same_sft(one["adamw"], tmp_path / "adamw/out")
    assert_same_rl(one["rl"], tmp_path / "rl/out")
    assert_same_rl(one["lora"], tmp_path / "lora/out")
    assert (tmp_path / "lora/out/adapter/adapter_model.safetensors").is_file()
    for name, update in killed_in.items():
        for rank in (0, 1):
            seen = json.loads((tmp_path / name / f"seen-{rank}.json").read_text())
            assert seen[0][0] == (update - 1 if update else 0), "the state that it went on from"
            parts = [part for _, *parts in seen for part in parts if part is not None]
            assert parts == pytest.approx([0.5] * len(parts), abs=0.01)


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
