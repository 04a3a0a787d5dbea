"""Two processes, started as `accelerate launch` starts them, train what one does."""

import json

import pytest
import torch
from safetensors.torch import load_file

from apr.core.errors import ParamsError
from apr.rl.train import check_params, train_rl
from tests.conftest import launch

SAME = ("step", "reward", "children", "total_tokens", "sequential_tokens", "zero_variance_groups")
CLOSE = ("loss", "kl", "grad_norm", "clip_share", "entropy")


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_two_processes_share_three_prompts(params, problems, validation, checkpoint, tmp_path):
    """Each has one and a half of the groups, and micro-batches in which nothing is scored."""
    rl = params.rl.model_copy(update={"prompts": 3, "group": 2, "rows_per_device": 1})
    params = params.model_copy(update={"rl": rl})
    train_rl(params, "apr", problems, validation, checkpoint, tmp_path / "one")
    launch(params, tmp_path, "rl", "--policy", "apr", "--problems", problems, "--validation", validation,
           "--checkpoint", checkpoint,
           "--out", tmp_path / "two")  # fmt: skip
    assert json.loads((tmp_path / "two/metrics.json").read_text())["processes"] == 2
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [[line[name] for name in SAME] for line in two] == [[line[name] for name in SAME] for line in one]
    assert any(line["zero_variance_groups"] for line in one)
    for name in CLOSE:
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], abs=1e-4), name
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-4, rtol=0)
    assert not (tmp_path / "two.work").exists()


def test_rows_that_do_not_split_are_an_error(params, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ParamsError, match="prompts \\* rl.group / processes = 16 / 3"):
        check_params(params, "apr")
