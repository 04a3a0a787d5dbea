"""Two real steps on a tiny model that solves about half of its problems."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoTokenizer

from apr.core.errors import AprError, ParamsError
from apr.core.files import read_rows
from apr.core.hashes import hash_tree
from apr.core.params import partial_params
from apr.core.seeds import derive_rng
from apr.engine.checkpoint import load_model
from apr.engine.slots import SlotEngine
from apr.language.tokenizer import load_language
from apr.rollouts.orchestrator import Orchestrator
from apr.rollouts.records import rollouts_of
from apr.rollouts.verdict import Judgement
from apr.tasks import open_task
from apr.tasks.problems import read_problems
from apr.training.curves import Curves
from apr.training.rl.packing import pack
from apr.training.rl.sampling import Sampler, draw_problems
from apr.training.rl.snapshots import SNAPSHOT_SCHEMA, Snapshots, snapshot_steps
from apr.training.rl.train import train_rl, trainer_config
from apr.training.rl.trainer import POSITIONS, PackedGRPOTrainer

KEYS = {
    "step", "reward", "accuracy", "children", "total_tokens", "sequential_tokens", "malformed", "truncated",
    "zero_variance_groups", "kl", "entropy", "clip_share", "grad_norm", "loss", "exploded_updates",
    "mismatch_kl", "mismatch",
}  # fmt: skip


def weights(directory):
    return load_file(directory / "model.safetensors")


def log(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def with_rl(params, **changes):
    return params.model_copy(update={"rl": params.rl.model_copy(update=changes)})


@pytest.fixture(scope="module")
def points():
    """What goes to curves while `run` trains."""
    return []


@pytest.fixture(scope="module")
def run(params, problems, validation, checkpoint, tmp_path_factory, points):
    out = tmp_path_factory.mktemp("run") / "rl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Curves, "write", lambda self, line: points.append(line))
        train_rl(params, "apr", problems, validation, checkpoint, out)
    return out


def test_a_deadline_ends_after_a_whole_step(
    params, problems, validation, checkpoint, run, tmp_path, monkeypatch
):  # fmt: skip
    """Two steps of five at one second each: as far as they go, those of the run of two."""
    clock = iter(range(1000))
    monkeypatch.setattr("apr.training.deadline.time", SimpleNamespace(monotonic=lambda: next(clock)))
    longer = with_rl(params, steps=5)
    train_rl(longer, "apr", problems, validation, checkpoint, tmp_path / "rl", deadline=1.5)
    lines = log(tmp_path / "rl")
    assert [line["step"] for line in lines] == [1, 2] and lines == log(run)
    for name, value in weights(run).items():
        assert torch.equal(value, weights(tmp_path / "rl")[name])
    snapshots = read_rows(tmp_path / "rl/rollouts.parquet", SNAPSHOT_SCHEMA)
    assert sorted({row["step"] for row in snapshots}) == [0, 1, 2]


def test_two_steps_train_and_are_logged(run, points, checkpoint, language):
    lines = log(run)
    assert points == lines
    assert [line["step"] for line in lines] == [1, 2]
    assert all(set(line) == KEYS for line in lines)
    seconds = [json.loads(line) for line in run.with_name("rl.seconds.jsonl").open()]
    assert [line["step"] for line in seconds] == [1, 2]
    assert all(line["rollout_seconds"] > 0 and line["update_seconds"] > 0 for line in seconds)
    first = lines[0]
    assert 0 < first["reward"] < 1 and first["reward"] == first["accuracy"]
    assert first["children"] > 0 and 0 < first["sequential_tokens"] < first["total_tokens"]
    assert first["grad_norm"] > 0 and lines[1]["kl"] > 0
    before, after = weights(checkpoint), weights(run)
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    assert load_language(run).vocabulary.ids == language.vocabulary.ids
    assert json.loads((run / "metrics.json").read_text())["steps"] == 2
    assert not run.with_name("rl.work").exists()
    load_model(run, "cpu")


@pytest.mark.parametrize("credit", ["broadcast", "own", "difference"])
def test_nested_threads_are_trained(
    params, problems, validation, nested_checkpoint, tmp_path, monkeypatch, credit
):
    """Two real steps; what a grandchild has sampled has the trainer's log-probabilities, as all has."""
    policy = params.rl.policies["apr"].model_copy(update={"credit": credit})
    nested = with_rl(params, policies={"apr": policy})
    nested = nested.model_copy(update={"engine": params.engine.model_copy(update={"max_depth": 2})})
    given = []
    monkeypatch.setattr("apr.training.rl.sampling.pack", lambda rollout, advantages: (
        given.append((rollout, advantages)), pack(rollout, advantages))[1])  # fmt: skip
    train_rl(nested, "apr", problems, validation, nested_checkpoint, tmp_path / "rl")
    lines = log(tmp_path / "rl")
    assert len(lines) == 2 and all(line["mismatch"] < 1e-3 and line["grad_norm"] > 0 for line in lines)
    deep = [(rollout, advantages) for rollout, advantages in given if rollout.usage.depth == 2]
    assert len(given) == 2 * 16 and len(deep) > 3
    scored = [(rollout, advantages) for rollout, advantages in deep if advantages]
    assert scored and all(len(advantages) == len(rollout.threads) for rollout, advantages in scored)
    assert credit != "broadcast" or all(len(set(advantages)) == 1 for _, advantages in scored)


def test_a_fault_ends_the_run_and_the_next_one_resumes_bit_for_bit(
    run, params, problems, validation, checkpoint, tmp_path, monkeypatch
):
    whole, out = Orchestrator.run, tmp_path / "rl"
    calls = []

    def fails_in_step_two(self, requests, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:  # each step comes after a snapshot
            raise RuntimeError("the engine broke")
        return whole(self, requests, *args, **kwargs)

    monkeypatch.setattr(Orchestrator, "run", fails_in_step_two)
    with pytest.raises(RuntimeError, match="the engine broke"):
        train_rl(params, "apr", problems, validation, checkpoint, out)
    assert not out.exists()
    monkeypatch.setattr(Orchestrator, "run", whole)
    resumed_steps = []
    sample = Sampler.sample
    monkeypatch.setattr(Sampler, "sample", lambda self, prompts, trainer: (
        resumed_steps.append(trainer.state.global_step), sample(self, prompts, trainer))[1])  # fmt: skip
    train_rl(params, "apr", problems, validation, checkpoint, out)
    assert resumed_steps == [params.rl.inner_updates]
    assert hash_tree(out, out) == hash_tree(run, run), "and to every file"


def kept(directory, step):
    rows = read_rows(directory / "rollouts.parquet", SNAPSHOT_SCHEMA)
    return rollouts_of([row for row in rows if row["step"] == step])


def test_snapshots_are_what_the_models_before_and_after_decode(run, params, validation, checkpoint, language):
    rows = read_rows(run / "rollouts.parquet", SNAPSHOT_SCHEMA)
    assert list(dict.fromkeys((row["step"], row["problem_id"]) for row in rows)) == [
        (0, "validation-0"), (1, "validation-0"), (2, "validation-0")
    ]  # fmt: skip
    (problem,) = read_problems(open_task(params), validation)
    sampler = Sampler(params, "apr", language, [problem])
    for step, directory in ((0, checkpoint), (2, run)):
        model = load_model(directory, "cpu")
        (expected,) = sampler.decode([sampler.greedy(problem)], model)
        (found,) = kept(run, step)
        assert found.id == expected.id and len(found.threads) == len(expected.threads)
        for one, other in zip(found.threads, expected.threads, strict=True):
            close = {"logprobs": pytest.approx(other.logprobs, abs=1e-5)}
            assert vars(one) == vars(other) | close


def test_snapshots_leave_training_as_it_is(
    run, params, problems, validation, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(Snapshots, "_take", lambda *_: None)
    monkeypatch.setattr(Snapshots, "write", lambda *_: None)
    train_rl(params, "apr", problems, validation, checkpoint, tmp_path / "rl")
    assert log(tmp_path / "rl") == log(run)
    assert (tmp_path / "rl/model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize("steps, expected", [(1, [0, 1]), (2, [0, 1, 2]), (20, [0, 5, 10, 15, 20])])
def test_steps_of_snapshots(steps, expected):
    assert snapshot_steps(steps) == expected


def test_a_fault_in_the_reward_ends_the_run(params, problems, validation, checkpoint, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("verifier")

    monkeypatch.setattr("apr.tasks.countdown.verify", broken)
    with pytest.raises(ZeroDivisionError, match="verifier"):
        train_rl(params, "apr", problems, validation, checkpoint, tmp_path / "rl")


def test_a_gradient_that_explodes_is_counted_and_shown(
    params, problems, validation, checkpoint, tmp_path, capsys
):
    changed = with_rl(params, max_grad_norm=1e-6, learning_rate=1e-9)
    train_rl(changed, "apr", problems, validation, checkpoint, tmp_path / "rl")
    lines = log(tmp_path / "rl")
    assert [line["exploded_updates"] for line in lines] == [params.rl.inner_updates] * 2
    count = 2 * params.rl.inner_updates
    assert json.loads((tmp_path / "rl/metrics.json").read_text())["exploded_updates"] == count
    assert f"exploded updates {count}" in capsys.readouterr().err


def test_a_sampler_with_weights_of_another_step_ends_the_run(
    run, params, problems, validation, checkpoint, tmp_path, monkeypatch
):
    assert max(line["mismatch"] for line in log(run)) < 4e-5
    assert max(abs(line["mismatch_kl"]) for line in log(run)) < 1e-9
    found = max(line["mismatch"] for line in log(run))
    assert json.loads((run / "metrics.json").read_text())["mismatch"] == found
    monkeypatch.setattr(SlotEngine, "reload_weights", lambda *_: None)
    changed = with_rl(params, learning_rate=0.5, max_grad_norm=0.5)
    with pytest.raises(AprError, match="at step 2 sampler and trainer differ by .*rl.max_mismatch = 0.1$"):
        train_rl(changed, "apr", problems, validation, checkpoint, tmp_path / "rl")
    assert len(log(tmp_path / "rl.work")) == 1 and not (tmp_path / "rl").exists()


def test_a_loss_that_is_not_finite_ends_the_run(
    params, problems, validation, checkpoint, tmp_path, monkeypatch
):
    whole = PackedGRPOTrainer._compute_loss
    monkeypatch.setattr(PackedGRPOTrainer, "_compute_loss", lambda *args: whole(*args) * float("nan"))
    with pytest.raises(AprError, match="rl: loss is nan at step 1; try a smaller rl.learning_rate"):
        train_rl(params, "apr", problems, validation, checkpoint, tmp_path / "rl")
    assert not (tmp_path / "rl").exists()
    assert not list((tmp_path / "rl.work").glob("checkpoint-*"))


def test_needs_no_settings_but_those_it_declares(params, problems, validation, checkpoint, tmp_path):
    declared = params.model_dump(mode="json", include={"task", "seed", "grammar", "engine", "rl"})
    declared["rl"]["steps"] = 1
    train_rl(partial_params(declared), "apr", problems, validation, checkpoint, tmp_path / "rl")


@pytest.mark.parametrize(
    ("children", "text"), [(None, "<root> 3 :0 1 2 go"), (7, "<root> 3 :0 1 2 children 7 go")]
)
def test_prompts_ask_for_what_the_policy_says(params, problems, language, children, text):
    policies = {"apr": params.rl.policies["apr"].model_copy(update={"children": children})}
    drawn = read_problems(open_task(params), problems)
    sampler = Sampler(with_rl(params, policies=policies), "apr", language, drawn)
    assert language.vocabulary.decode(sampler.greedy(drawn[0]).prompt) == text


def test_all_prompts_of_a_problem_ask_for_the_devices_drawn_for_it(params, problems):
    policies = {"apr": params.rl.policies["apr"].model_copy(update={"devices": [1, 4, 16]})}
    grammar = params.grammar.model_copy(update={"devices": True})
    asking = with_rl(params, policies=policies).model_copy(update={"grammar": grammar})
    task = open_task(asking)
    drawn = read_problems(task, problems)
    sampler = Sampler(asking, "apr", task.language, drawn)
    found = {(problem.id, step): sampler.asked(problem, step) for problem in drawn for step in range(40)}
    for (name, step), condition in found.items():
        devices = derive_rng(params.seed, "devices", step, name).choice([1, 4, 16])
        assert condition == ("devices", devices)
    amounts = [condition.amount for condition in found.values()]
    assert all(amounts.count(devices) > 30 for devices in (1, 4, 16))
    said = f"<root> 3 :0 1 2 devices {found[drawn[0].id, 0].amount} go"
    assert task.language.vocabulary.decode(sampler.greedy(drawn[0]).prompt) == said


def fail_at_the_end(*_):
    raise OSError("disk full")


def test_a_run_that_failed_at_the_end_only_writes_its_result(
    run, params, problems, validation, checkpoint, tmp_path, monkeypatch
):
    out = tmp_path / "rl"
    with monkeypatch.context() as patch:
        patch.setattr("apr.training.checkpoint.save_checkpoint", fail_at_the_end)
        with pytest.raises(OSError, match="disk full"):
            train_rl(params, "apr", problems, validation, checkpoint, out)
    assert (tmp_path / "rl.work" / "checkpoint-4").is_dir()
    monkeypatch.setattr(Orchestrator, "run", fail_at_the_end)
    train_rl(params, "apr", problems, validation, checkpoint, out)
    assert log(out) == log(run)
    assert all(torch.equal(weights(out)[name], value) for name, value in weights(run).items())


def test_state_of_another_run_is_not_resumed(params, problems, validation, checkpoint, tmp_path, monkeypatch):
    out, other = tmp_path / "rl", with_rl(params, steps=1, learning_rate=2e-3)
    with monkeypatch.context() as patch:
        patch.setattr("apr.training.checkpoint.save_checkpoint", fail_at_the_end)
        with pytest.raises(OSError, match="disk full"):
            train_rl(with_rl(params, steps=1), "apr", problems, validation, checkpoint, out)
    train_rl(other, "apr", problems, validation, checkpoint, out)
    train_rl(other, "apr", problems, validation, checkpoint, tmp_path / "fresh")
    assert all(torch.equal(weights(out)[n], value) for n, value in weights(tmp_path / "fresh").items())


def test_steps_without_signal_change_nothing_and_are_counted(
    params, problems, validation, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("apr.training.rl.sampling.judge", lambda *_: Judgement("done"))
    train_rl(params, "apr", problems, validation, checkpoint, tmp_path / "rl")
    lines = log(tmp_path / "rl")
    figures = [(line["zero_variance_groups"], line["kl"], line["grad_norm"]) for line in lines]
    assert figures == [(4, None, 0)] * 2
    assert json.loads((tmp_path / "rl" / "metrics.json").read_text())["steps_without_signal"] == 2
    assert all(torch.equal(weights(tmp_path / "rl")[n], value) for n, value in weights(checkpoint).items())


@pytest.mark.parametrize("optimizer, learning_rate", [("adamw", 3e-4), ("sgd", 0.5)])
def test_reward_rises(params, problems, validation, checkpoint, tmp_path, optimizer, learning_rate):
    changed = with_rl(params, steps=8, optimizer=optimizer, learning_rate=learning_rate, max_grad_norm=0.05)
    train_rl(changed, "apr", problems, validation, checkpoint, tmp_path / "rl")
    rewards = [line["reward"] for line in log(tmp_path / "rl")]
    assert sum(rewards[-4:]) / 4 > rewards[0] + 0.15


def test_packed_scores_are_the_engines(params, problems, checkpoint, tmp_path):
    """What the engine recorded while it sampled, threads in any company, is what the update computes."""
    language = load_language(checkpoint)
    drawn = draw_problems(params, "apr", read_problems(open_task(params), problems))
    sampler = Sampler(params, "apr", language, drawn)
    trainer = PackedGRPOTrainer(
        sampler.sample,
        prompts=[problem.id for problem in drawn],
        model=load_model(checkpoint, "cpu", attention="packed"),
        args=trainer_config(params, "apr", tmp_path),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    trainer.model.train()
    inputs = [{"prompt": p.id} for p in drawn[: params.rl.prompts] for _ in range(params.rl.group)]
    batch = trainer._generate_and_score_completions(inputs)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        packed, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, batch["completion_ids"].shape[1], **{POSITIONS: batch[POSITIONS]}
        )
    sampled = batch["completion_mask"].bool()
    assert sampler.record["children"] > 0
    assert_close(packed[sampled], batch["old_per_token_logps"][sampled], atol=1e-5, rtol=0)


def test_lora_leaves_a_plain_checkpoint(params, problems, validation, checkpoint, tmp_path):
    lora = type(params.rl).model_fields["lora"].annotation.__args__[0](rank=2, alpha=4)
    train_rl(with_rl(params, steps=1, lora=lora), "apr", problems, validation, checkpoint, tmp_path / "rl")
    before, after = weights(checkpoint), weights(tmp_path / "rl")
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.parametrize(
    ("changes", "policy", "message"),
    [
        ({}, "sos", r"rl\.policies: 'sos'"),
        ({"rows_per_device": 3}, "apr", r"rl\.rows_per_device: 3 .* divisor"),
        ({"prompts": 5, "rows_per_device": 5}, "apr", r"rl\.prompts: 5"),
    ],
)
def test_impossible_settings(params, problems, validation, checkpoint, tmp_path, changes, policy, message):
    with pytest.raises(ParamsError, match=message):
        train_rl(with_rl(params, **changes), policy, problems, validation, checkpoint, tmp_path / "rl")


def test_window_smaller_than_a_prompt(params, problems, validation, checkpoint, tmp_path):
    small = params.model_copy(update={"grammar": params.grammar.model_copy(update={"window": 5})})
    with pytest.raises(ParamsError, match=r"grammar\.window: 5"):
        train_rl(small, "apr", problems, validation, checkpoint, tmp_path / "rl")
