"""Training end to end on real traces: determinism, resuming, adapters, errors."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from apr.core.errors import AprError, CheckpointError, DataError, ParamsError
from apr.core.hashes import hash_tree
from apr.core.seeds import derive_seed
from apr.engine.checkpoint import load_model
from apr.language.tokenizer import load_language
from apr.training import attention
from apr.training.checkpoint import new_model
from apr.training.curves import Curves
from apr.training.sft.base import PERIODS, starting_model
from apr.training.sft.data import RowCollator, pack_rows, read_threads
from apr.training.sft.train import train_sft
from apr.training.sft.trainer import PackedSFTTrainer
from tests.engine.conftest import Tape


@pytest.fixture(scope="module")
def train(data, make_params):
    def run(out, **sections):
        train_sft(make_params(**sections), "apr", data / "traces.parquet", data / "tokenizer", out)
        return out

    return run


def test_numbers_may_begin_as_waves_of_their_value(data, make_params):
    vocabulary = load_language(data / "tokenizer").vocabulary

    def rows(share, hidden=64):
        sizes = {"model": {"hidden": hidden}, "sft": {"number_waves": share}}
        embeddings = starting_model(make_params(**sizes), "apr", vocabulary)[0].get_input_embeddings().weight
        numbers = [vocabulary.number(value)[0] for value in range(60)]
        return embeddings[numbers].detach(), np.delete(embeddings.detach(), [*vocabulary.number_of], axis=0)

    (plain, others), (waves, same), (half, _) = rows(0.0), rows(1.0), rows(0.5)
    assert np.array_equal(others, same), "words stay as they are"
    apart = torch.arange(60)[:, None] - torch.arange(60)
    alike = torch.stack([(2 * torch.pi * apart / period).cos() for period in PERIODS]).mean(0)
    torch.testing.assert_close(waves @ waves.T, 64 * 0.02**2 * alike, rtol=0, atol=1e-6)
    torch.testing.assert_close(half, 0.5**0.5 * (waves + plain))
    few, _ = rows(1.0, hidden=16)
    alike = torch.stack([(2 * torch.pi * apart / period).cos() for period in PERIODS[:8]]).mean(0)
    torch.testing.assert_close(few @ few.T, 16 * 0.02**2 * alike, rtol=0, atol=1e-6)


def weights(directory) -> bytes:
    return (directory / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "sft")


@pytest.mark.gpu
@pytest.mark.parametrize("precision, allowed", [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_a_gpu_trains_as_a_cpu_does(train, tmp_path, precision, allowed, record_property, monkeypatch):
    """And layers of transformers, which stand for it where there is none, as the kernels do."""
    losses = []
    for device in "cpu", "auto":
        if device == "auto":
            monkeypatch.setattr("apr.training.sft.train.use_kernels", lambda *_: False)
        out = train(tmp_path / device, engine={"device": device}, sft={"precision": precision})
        losses.append([json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()])
    record_property("losses", losses)
    assert losses[1] == pytest.approx(losses[0], rel=allowed)


def test_curves_are_those_of_the_log(train, trained, tmp_path, monkeypatch):
    points = []
    monkeypatch.setattr(Curves, "write", lambda self, line: points.append(dict(line)))
    out = train(tmp_path / "sft")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [{name: line[name] for name in ("step", "loss", "tokens")} for line in points] == [
        {name: line[name] for name in ("step", "loss", "tokens")} for line in lines]  # fmt: skip
    assert weights(out) == weights(trained)


class Killed(BaseException):
    """Stands for a kill: no handler of the program sees it."""


def kill_at(monkeypatch, step):
    """The run dies in the middle of this optimizer step."""
    loss = PackedSFTTrainer.compute_loss

    def dying(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Killed
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(PackedSFTTrainer, "compute_loss", dying)


def test_artefact_is_a_plain_checkpoint_that_has_learnt(trained):
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert [entry["step"] for entry in log] == list(range(1, metrics["steps"] + 1))
    assert log[-1]["loss"] < log[0]["loss"] - 0.5 and metrics["tokens"] == log[-1]["tokens"]
    assert {"loss", "learning_rate", "tokens", "grad_norm"} <= log[0].keys()
    seconds = [json.loads(line) for line in trained.with_name("sft.seconds.jsonl").open()]
    assert [line["step"] for line in seconds] == [entry["step"] for entry in log]
    assert all(line["tokens_per_second"] > 0 for line in seconds)
    model, language = load_model(trained, "cpu"), load_language(trained)
    assert model.num_parameters() == metrics["parameters"]
    assert model.config.vocab_size == language.vocabulary.size
    assert not list(trained.parent.glob("*.work"))


def test_same_seed_same_bytes(train, trained, tmp_path):
    train(tmp_path / "sft")
    assert hash_tree(tmp_path / "sft", tmp_path / "sft") == hash_tree(trained, trained)
    assert weights(train(tmp_path / "other", seed=1)) != weights(trained)


def test_other_thread_counts_give_the_same_curve_up_to_rounding(train, trained, tmp_path):
    """What holds where bytes do not: another number of torch threads, another machine, a GPU."""
    other = train(tmp_path / "sft", engine={"torch_threads": 2})
    curves = [[json.loads(line)["loss"] for line in (run / "log.jsonl").open()] for run in (trained, other)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.parametrize("step", [1, 5])
def test_killed_and_resumed_is_the_same_run(train, trained, tmp_path, step):
    """Step 1 comes before the first state is saved, step 5 in the middle of the run."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            train(tmp_path / "sft")
    assert not (tmp_path / "sft").exists()
    states = sorted(path.name for path in (tmp_path / "sft.work").glob("checkpoint-*"))
    assert states == {1: [], 5: ["checkpoint-2", "checkpoint-4"]}[step]
    train(tmp_path / "sft")
    assert hash_tree(tmp_path / "sft", tmp_path / "sft") == hash_tree(trained, trained)
    assert not (tmp_path / "sft.work").exists()


def test_adamw_resumes_too(train, tmp_path):
    adamw = {"sft": {"optimizer": "adamw"}}
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train(tmp_path / "sft", **adamw)
    assert (tmp_path / "sft.work" / "checkpoint-4").is_dir()
    assert weights(train(tmp_path / "sft", **adamw)) == weights(train(tmp_path / "whole", **adamw))


def test_state_of_other_parameters_is_not_resumed(train, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train(tmp_path / "sft")
    changed = {"sft": {"learning_rate": 2e-2}}
    fresh = train(tmp_path / "fresh", **changed)
    assert weights(train(tmp_path / "sft", **changed)) == weights(fresh)


def test_loss_of_a_step_is_the_mean_of_its_labels(data, make_params, trained):
    params = make_params()
    vocabulary = load_language(data / "tokenizer").vocabulary
    threads = read_threads(
        data / "traces.parquet", child_share=0.4, seed=0, longest=192, vocabulary_size=vocabulary.size
    )
    seed = derive_seed(0, "sft", "apr")
    rows = pack_rows(threads.starts[1:] - threads.starts[:-1], 200, 2400, seed)
    model = new_model(params.model, vocabulary.size, vocabulary.pad, 192, seed)
    collate = RowCollator(threads)
    total = count = 0
    for row in rows[:2]:
        for index in row:
            batch = collate([{"threads": [index]}])
            ids, logs = batch["input_ids"][0], model(batch["input_ids"]).logits[0].log_softmax(-1)
            for position in range(len(ids) - 1):
                if threads.loss[threads.starts[index] + position + 1]:
                    total -= logs[position, ids[position + 1]].item()
                    count += 1
    first = json.loads((trained / "log.jsonl").read_text().splitlines()[0])["loss"]
    assert first == pytest.approx(total / count, rel=1e-5)


def test_adapters_leave_a_plain_checkpoint(train, trained, tmp_path):
    before = load_model(trained, "cpu").state_dict()
    out = train(tmp_path / "sft", sft={"base": str(trained), "lora": {"rank": 4, "alpha": 8}})
    after = load_model(out, "cpu").state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if "_proj" in name}


def test_a_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    with pytest.raises(AprError, match="the loss is .* at step"):
        train(tmp_path / "sft", sft={"optimizer": "adamw", "learning_rate": 1e38})
    assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize("heads, kernels", [(2, True), (4, False)], ids=["kernels", "heads of 8"])
def test_bfloat16_over_float32_weights(train, tmp_path, monkeypatch, heads, kernels):
    """By the kernels, which call no linear layer; by autocast where there are none."""
    seen = set()
    loss = PackedSFTTrainer.compute_loss

    def watched(self, model, *args, **kwargs):
        layer = self.accelerator.unwrap_model(model).model.layers[0]
        seen.add("forward" in vars(layer))
        hook = layer.mlp.down_proj.register_forward_hook(lambda linear, _, out: seen.add(out.dtype))
        try:
            return loss(self, model, *args, **kwargs)
        finally:
            hook.remove()

    monkeypatch.setattr(PackedSFTTrainer, "compute_loss", watched)
    sizes = {"hidden": 32, "heads": heads, "kv_heads": heads}
    out = train(tmp_path / "sft", sft={"precision": "bfloat16", "tokens": {"apr": 800}}, model=sizes)
    assert seen == ({True} if kernels else {False, torch.bfloat16})
    assert load_model(out, "cpu").dtype == torch.float32


def test_a_deadline_ends_the_schedule_too(data, make_params, trained, tmp_path, monkeypatch):
    """One second a step: five of them instead of twenty, and the learning rate comes to 0 after the last."""
    clock = iter(range(1000))
    monkeypatch.setattr("apr.training.deadline.time", SimpleNamespace(monotonic=lambda: next(clock)))
    files = data / "traces.parquet", data / "tokenizer"
    train_sft(make_params(sft={"tokens": {"apr": 8000}}), "apr", *files, tmp_path / "sft", deadline=4)
    log = [json.loads(line) for line in (tmp_path / "sft/log.jsonl").read_text().splitlines()]
    metrics = json.loads((tmp_path / "sft/metrics.json").read_text())
    assert metrics["steps"] == log[-1]["step"] == 5 and metrics["tokens"] == log[-1]["tokens"] < 2100
    assert metrics["epochs"] < json.loads((trained / "metrics.json").read_text())["epochs"]
    rates = [line["learning_rate"] / 0.015 for line in log]
    assert rates == pytest.approx([0, 1, 18 / 19, 2 / 5, 1 / 5])  # a step late
    train_sft(make_params(), "apr", *files, tmp_path / "far", deadline=10**6)
    assert weights(tmp_path / "far") == weights(trained)


def by_mask(query, key, value, block_mask, scale, enable_gqa):
    """In place of flex attention, which no dispatch mode sees through."""
    at = torch.arange(query.shape[2])
    seen = block_mask.mask_mod(torch.zeros_like(at)[:, None], None, at[:, None], at[None])
    return scaled_dot_product_attention(query, key, value, seen, scale=scale, enable_gqa=enable_gqa)


def test_a_row_waits_for_no_device(train, trained, tmp_path, monkeypatch):
    """By one call for all threads, as on a GPU: the same loss as thread by thread."""

    def by_row(module, query, key, value, mask, scaling=None, dropout=0.0, **kwargs):
        return attention.flex(query, key, value, kwargs["position_ids"], scaling, module.smallest_row), None

    monkeypatch.setattr(attention, "_check_starts", lambda positions: None)  # whose look is a CPU's
    monkeypatch.setattr(attention, "flex_attention", by_mask)
    monkeypatch.setattr("apr.training.sft.train.use_kernels", lambda *_: False)
    monkeypatch.setitem(attention.AttentionInterface._global_mapping, "packed", by_row)
    called = []

    def blind(name, step, *args, **kwargs):
        called.append(name)
        with Tape():  # on which no operation may have a result that Python looks at
            return step(*args, **kwargs)

    for name in ("training_step", "_get_num_items_in_batch"):
        given = name, getattr(PackedSFTTrainer, name)
        monkeypatch.setattr(
            PackedSFTTrainer, name, lambda *args, given=given, **more: blind(*given, *args, **more)
        )
    out = train(tmp_path / "sft", sft={"tokens": {"apr": 800}, "precision": "float32"})
    first, expected = (json.loads((run / "log.jsonl").read_text().splitlines()[0]) for run in (out, trained))
    assert first["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert called.count("training_step") == 2 * called.count("_get_num_items_in_batch") > 2


def test_adamw_is_fused(train, tmp_path, monkeypatch):
    optimizers = []
    create = PackedSFTTrainer.create_optimizer
    monkeypatch.setattr(
        PackedSFTTrainer, "create_optimizer", lambda *args: optimizers.append(create(*args)) or optimizers[-1]
    )
    train(tmp_path / "sft", sft={"optimizer": "adamw", "tokens": {"apr": 400}})
    assert [group["fused"] for group in optimizers[0].param_groups] == [True, True]


def test_share_of_the_peak(train, data, make_params, trained, tmp_path, monkeypatch):
    """Of a device of 1 GFLOP/s, by PyTorch's own count for as many tokens in a single thread."""
    assert "peak_share" not in trained.with_name("sft.seconds.jsonl").read_text()
    monkeypatch.setattr("apr.training.sft.train.bfloat16_peak", lambda device: 1e9)
    out = train(tmp_path / "sft")
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    seconds = [json.loads(line) for line in out.with_name("sft.seconds.jsonl").open()]
    tokens = [0, *(entry["tokens"] for entry in log)]
    model = load_model(out, "cpu", "eager")
    for before, after, entry in zip(tokens, tokens[1:], seconds, strict=False):
        count = after - before
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, count, dtype=torch.int64), use_cache=False).logits.sum().backward()
        took = count / entry["tokens_per_second"]
        whole = counter.get_total_flops()
        # A row of several threads has less attention than one of a single thread.
        attention = 3 * 4 * 2 * 32 * count**2
        assert (whole - attention) / took / 1e9 < entry["peak_share"] * 1.02
        assert entry["peak_share"] < 1.02 * (whole - attention / 2) / took / 1e9


def test_bad_input(train, data, make_params, trained, tmp_path):
    with pytest.raises(DataError, match=r"tokens, .* at most 16$"):
        train(tmp_path / "sft", grammar={"window": 16})
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        train(tmp_path / "sft", sft={"base": str(tmp_path / "missing")})
    with pytest.raises(ParamsError, match="sft.lora: allowed only with sft.base"):
        train(tmp_path / "sft", sft={"lora": {}})
    broken = shutil.copytree(trained, tmp_path / "broken")
    (broken / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer.json is missing"):
        train(tmp_path / "sft", sft={"base": str(broken)})
    with pytest.raises(CheckpointError, match="no tokenizer here"):
        train_sft(make_params(), "apr", data / "traces.parquet", tmp_path, tmp_path / "sft")
    assert not (tmp_path / "sft").exists()
