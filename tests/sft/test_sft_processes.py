"""Two processes, started as `accelerate launch` starts them, train what one does."""

import json

import pytest
import torch
from safetensors.torch import load_file

from apr.core.errors import ParamsError
from apr.sft.train import train_sft
from tests.conftest import launch


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_two_processes_have_the_losses_of_one(data, make_params, tmp_path):
    params = make_params()
    traces, tokenizer = data / "traces.parquet", data / "tokenizer"
    train_sft(params, "apr", traces, tokenizer, tmp_path / "one")
    said = launch(params, tmp_path, "sft", "--method", "apr", "--traces", traces,
                  "--tokenizer", tokenizer, "--out", tmp_path / "two")  # fmt: skip
    assert json.loads((tmp_path / "two/metrics.json").read_text())["processes"] == 2
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-3)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=2e-3, rtol=0)
    assert said.count(f"sft apr: {len(one)}/{len(one)}") == 1, "the first process alone says how far it is"
    assert not (tmp_path / "two.work").exists()


def test_rows_that_do_not_split_are_an_error(data, make_params, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ParamsError, match="rows_per_step: 2 is not allowed; allowed: a multiple of 3"):
        train_sft(make_params(), "apr", data / "traces.parquet", data / "tokenizer", tmp_path / "out")
