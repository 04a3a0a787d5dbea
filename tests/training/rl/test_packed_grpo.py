"""The packed trainer against thread-by-thread arithmetic that is written out here."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer

from apr.engine.checkpoint import load_model
from apr.rollouts.rollout import Rollout, Thread
from apr.training.rl.packing import pack
from apr.training.rl.train import trainer_config
from apr.training.rl.trainer import POSITIONS, PackedGRPOTrainer

KL, CLIP = 0.05, 0.2
SHAPES = [  # prompt and the rest of each thread, S sampled, . injected; the second four are without signal
    [("...", "SS")],
    [("....", "SSS..SS"), ("..", "SSSS"), (".", "S")],
    [("..", "S")],
    [("...", "SSSS...S"), ("...", "SS")],
    [("..", "SSSSSS")],
    [("...", "SS")],
    [("..", "SS.S"), (".....", "SSSSS")],
    [("...", "SSS")],
]
HIGH = 0.5 / (3**-0.5 + 1e-4)
"""Of rewards 1 0 0 1: mean 1/2, standard deviation sqrt(1/3)."""
ALIKE = [[HIGH], [-HIGH] * 3, [-HIGH], [HIGH] * 2]
APART = [[0.3], [-1.0, 0.7, 0.0], [0.0], [0.5, -0.2]]
"""Advantages of the threads of the first four; the others have none."""


def thread_logps(model, ids):
    """Log-probability of every token but the first: one thread, ordinary attention."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[1:, None])[:, 0]


@pytest.fixture
def case(request, params, checkpoint, tmp_path, monkeypatch):
    """A trainer whose model has moved away from its reference, and rollouts with an older policy's scores.

    Its parameter are the advantages; `ALIKE` without one.
    """
    monkeypatch.setattr("apr.training.rl.trainer.quickest", lambda device: torch.float32)  # exact gradients
    generator = torch.Generator().manual_seed(7)
    plain = load_model(checkpoint, "cpu")
    reference = load_model(checkpoint, "cpu")
    with torch.no_grad():
        for weight in plain.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    rollouts, advantages = [], getattr(request, "param", ALIKE)
    for shape in SHAPES:
        threads = []
        for prompt, rest in shape:
            ids = torch.randint(4, 40, (len(prompt + rest),), generator=generator).tolist()
            with torch.no_grad():
                scores = thread_logps(plain, ids)
            old = scores + 0.3 * torch.randn(scores.shape, generator=generator)
            sampled = [letter == "S" for letter in prompt + rest]
            logprobs = [p if s else 0.0 for p, s in zip([0.0, *old.tolist()], sampled, strict=True)]
            threads.append(Thread(len(threads), min(len(threads), 1) - 1, min(len(threads), 1), len(prompt),
                                  ids, sampled, logprobs))
        rollouts.append(Rollout("", threads))
    rows = [pack(*pair) for pair in zip(rollouts, [*advantages, None, None, None, None], strict=True)]
    trainer = PackedGRPOTrainer(
        lambda prompts, trainer: rows,
        prompts=["a", "b"],
        model=load_model(checkpoint, "cpu", attention="packed"),
        args=trainer_config(
            params.model_copy(update={"rl": params.rl.model_copy(update={"prompts": 2})}), "apr", tmp_path
        ),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    trainer.model.load_state_dict(plain.state_dict())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2  # as `train()` sets it
    return SimpleNamespace(trainer=trainer, plain=plain, reference=reference, rollouts=rollouts,
                           rows=rows, advantages=advantages,
                           inputs=[{"prompt": name} for name in "aaaabbbb"])  # fmt: skip


def plain_loss(case):
    """The loss of `apr.training.rl.train`'s docstring, a thread at a time. Also KL and clip share."""
    total, kls, clipped = 0.0, [], []
    for rollout, given in zip(case.rollouts[:4], case.advantages, strict=True):
        terms = []
        for thread, advantage in zip(rollout.threads, given, strict=True):
            now = thread_logps(case.plain, thread.ids)
            with torch.no_grad():
                reference = thread_logps(case.reference, thread.ids)
            for position, sampled in enumerate(thread.sampled):
                if not sampled:
                    continue
                ratio = (now[position - 1] - thread.logprobs[position]).exp()
                cut = ratio.clamp(1 - CLIP, 1 + CLIP)
                gap = reference[position - 1] - now[position - 1]
                kl = gap.exp() - gap - 1
                terms.append(-torch.minimum(ratio * advantage, cut * advantage) + KL * kl)
                kls.append(kl.item())
                clipped.append(float(ratio != cut and (ratio > 1) == (advantage > 0)))
        total = total + torch.stack(terms).mean() / len(case.rollouts)
    return total, sum(kls) / len(kls), sum(clipped) / len(clipped)


def test_batch_by_hand(case):
    batch = case.trainer._generate_and_score_completions(case.inputs)
    assert batch["prompt_mask"].sum(1).tolist() == [3, 4, 2, 3, 2, 3, 2, 3]
    lengths = [[5], [11, 6, 2], [3], [11, 5], [], [], [], []]
    for places, expected in zip(batch[POSITIONS], lengths, strict=True):
        assert places[places >= 0].tolist() == [n for length in expected for n in range(length)]
    assert batch["completion_mask"][4:].sum() == 0
    for index, (row, rollout) in enumerate(zip(case.rows[:4], case.rollouts, strict=False)):
        size, first = len(row.completion_ids), rollout.threads[0].prompt_length
        sampled = [int(s) for thread in rollout.threads for s in thread.sampled][first:]
        logprobs = [p for thread in rollout.threads for p in thread.logprobs][first:]
        advantages = [a for thread, a in zip(rollout.threads, ALIKE[index], strict=True) for _ in thread.ids]
        assert batch["completion_ids"][index, :size].tolist() == row.completion_ids
        assert batch["completion_mask"][index, :size].tolist() == sampled
        assert batch["completion_mask"][index, size:].sum() == 0
        assert_close(batch["old_per_token_logps"][index, :size], torch.tensor(logprobs))
        assert_close(batch["advantages"][index, :size], torch.tensor(advantages[first:]))


def test_packed_logps_are_those_of_threads_alone(case):
    batch = case.trainer._generate_and_score_completions(case.inputs)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        for model, plain in ((case.trainer.model, case.plain), (case.trainer.ref_model, case.reference)):
            whole, _, _ = case.trainer._get_per_token_logps_and_entropies(
                model, ids, mask, batch["completion_ids"].shape[1], **{POSITIONS: batch[POSITIONS]}
            )
            assert not whole[4:].any()
            for row, rollout in enumerate(case.rollouts[:4]):
                packed = whole[row, : len(case.rows[row].completion_ids)]
                alone = torch.cat([torch.cat([torch.zeros(1), thread_logps(plain, thread.ids)])
                                   for thread in rollout.threads])
                alone = alone[len(case.rows[row].prompt_ids) :]
                assert_close(packed, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", [ALIKE, APART], indirect=True, ids=["alike", "by thread"])
def test_loss_and_gradient_are_those_of_threads_alone(case):
    """TRL shuffles the rows into two micro-batches; their losses add up."""
    trainer = case.trainer
    loss = 0.0
    for micro_batch in range(2):
        inputs = trainer._prepare_inputs(case.inputs)
        part = trainer.compute_loss(trainer.model, inputs)
        part.backward()
        loss += part.item()
        trainer._step = micro_batch + 1
    expected, _, _ = plain_loss(case)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    for (name, weight), (_, plain) in zip(
        trainer.model.named_parameters(), case.plain.named_parameters(), strict=True
    ):
        assert_close(weight.grad, plain.grad, atol=1e-6, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_logged_kl_and_clip_share_are_means_over_tokens(case):
    for micro_batch in range(2):
        case.trainer._step = micro_batch
        case.trainer.compute_loss(case.trainer.model, case.trainer._prepare_inputs(case.inputs))
    _, kl, clip_share = plain_loss(case)
    metrics = case.trainer._metrics["train"]
    assert sum(metrics["kl"]) / 2 == pytest.approx(kl, rel=1e-5)
    assert sum(metrics["clip_ratio/region_mean"]) / 2 == pytest.approx(clip_share) and clip_share > 0


def test_micro_batch_without_signal_has_a_loss_of_zero(case):
    batch = case.trainer._generate_and_score_completions(case.inputs)
    rest = {name: value[4:] if value.ndim else value for name, value in batch.items()}
    loss = case.trainer.compute_loss(case.trainer.model, rest)
    loss.backward()
    assert loss == 0
    assert all(weight.grad is None for weight in case.trainer.model.parameters())


def test_injected_tokens_and_only_they_have_no_gradient(case, monkeypatch):
    trainer, seen = case.trainer, []
    score = trainer._get_per_token_logps_and_entropies

    def spy(*args, **kwargs):
        scores = score(*args, **kwargs)
        if scores[0].requires_grad:
            scores[0].retain_grad()
            seen.append(scores[0])
        return scores

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", spy)
    batch = trainer._generate_and_score_completions(case.inputs)
    trainer.compute_loss(trainer.model, batch).backward()
    sampled = batch["completion_mask"].bool()
    assert ((seen[0].grad != 0) <= sampled).all()
    # KL gives a gradient to every sampled token, stop tokens (the last of each thread) included
    assert ((seen[0].grad != 0) == sampled).all()
