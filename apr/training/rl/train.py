"""Reinforcement learning of whole rollouts: GRPO, end to end (paper: Figures 5 and 7).

    reference <- policy <- the SFT checkpoint
    for step in 1..steps:
        draw `prompts` training problems                                        sampling.draw_problems
        decode `group` rollouts of each with the policy, parents and children   sampling.Sampler.sample
        r = 1 where the strict verifier accepts the root's answer, else 0       rewards.outcome
        A = (r - mean of its group) / (standard deviation of its group + 1e-4)  credit.broadcast
        repeat `inner_updates` times:                                           trainer.PackedGRPOTrainer
            ratio = policy / policy that sampled, for each sampled token of each thread
            KL    = reference / policy - log(reference / policy) - 1            (never negative)
            loss  = mean over rollouts of the mean over their sampled tokens of
                    - min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + kl KL
            `optimizer` step on its gradient, cut to norm `max_grad_norm`

A rollout is one packed row (`apr.training.rl.packing`): its tokens share one mean, and with this credit one
advantage, whatever thread they are in; injected tokens have no loss, the stop tokens that were sampled do.

Where this is not the paper's GRPO, or the paper is silent and its code decides otherwise:
- A token's weight is 1 / sampled tokens of its rollout, in the policy term and in the KL term alike; the
  reference code divides the policy term by the number of threads, and not the KL term.
- Stop tokens are trained; the reference code never does.
- A parent is one sequence that goes on after its spawn; the reference code trains its prefix once more
  after each join.
- The sampler's log-probabilities are the old policy's, never recomputed.
- Weights, optimiser, rollouts and scores are float32, as in evaluation (on a GPU without TF32, which rounds
  the angles of rotary embeddings), the products of gradients bfloat16 on processors with units for it; the
  learning rate is constant after `warmup_steps`; no weight decay.
- Plain gradient descent (`rl.optimizer`) instead of AdamW: with some thousand rollouts in all, AdamW moves
  every weight by the learning rate, mostly at random, and unlearns arithmetic faster than it learns to spawn.
- Rollouts of a group whose rewards are all equal have no advantage. They count in the mean over rollouts,
  but are not scored, so they do not feel the KL term either; most of an update's time is saved by it.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoTokenizer
from transformers.utils import logging
from trl import GRPOConfig

from apr.core.errors import ParamsError
from apr.core.files import open_work, write_json
from apr.core.model_files import model_files
from apr.core.params import Params
from apr.core.progress import Meter
from apr.core.ranks import rank, world_size
from apr.engine.checkpoint import resolve_device
from apr.language.tokenizer import load_language
from apr.tasks import open_task
from apr.tasks.problems import read_problems
from apr.training.attention import one_size
from apr.training.checkpoint import finished, identity, load_trainable
from apr.training.curves import Curves
from apr.training.deadline import Deadline
from apr.training.rl.log import StepLog, read_log, summary
from apr.training.rl.sampling import Sampler, draw_problems, steps_of
from apr.training.rl.servers import ServedPolicy
from apr.training.rl.snapshots import PROBLEMS, Snapshots
from apr.training.rl.trainer import PackedGRPOTrainer


def train_rl(
    params: Params, policy: str, problems: Path, validation: Path, checkpoint: Path, out: Path,
    deadline: float | None = None,
) -> None:  # fmt: skip
    """Trains `policy` from the SFT `checkpoint` and writes the directory `out`.

    `problems` and `validation` are Parquet files of problems: those to train on, and those of which greedy
    rollouts are kept at some steps. `out` holds weights, tokenizer, `log.jsonl` (a line per step, see
    `apr.training.rl.log`), `rollouts.parquet` (see `apr.training.rl.snapshots`) and `metrics.json`, which
    equal runs have alike to the byte; what steps took is in `<out>.seconds.jsonl`. Until
    it is written, `<out>.work` holds the trainer's state every `checkpoint_steps` steps, and a run with
    equal parameters and inputs goes on from there. Raises `ParamsError`, `DataError` or `CheckpointError`
    on bad input, and `AprError` if a loss or a gradient is not finite; a fault while sampling or in the
    reward ends the run.
    With `rl.servers` the rollouts of a step are decoded there; snapshots are decoded here.
    Under `accelerate launch` the processes share the rollouts and the rows of every step. With a `deadline`,
    in seconds of `time.monotonic`, it takes as many steps as end by then (`Deadline`).
    """
    check_params(params, policy)
    torch.set_num_threads(params.engine.torch_threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    language = load_language(checkpoint)
    task = open_task(params)
    drawn = draw_problems(params, policy, read_problems(task, problems))
    work = out.with_name(f"{out.name}.work")
    served = ServedPolicy(params, language, checkpoint, work / "served") if params.rl.servers else None
    sampler, steps = Sampler(params, policy, language, drawn, served), steps_of(params, policy)
    curves, config = Curves(params.rl.report_to, out), trainer_config(params, policy, work)
    with config.main_process_first(local=False):
        resume_from = open_work(work, run_identity(params, policy, [problems, validation], checkpoint))
    shown = [sampler.greedy(problem) for problem in read_problems(task, validation)[:PROBLEMS]]
    with Meter(f"rl {policy}", steps, "step") as meter:
        trainer = new_trainer(params, sampler, [problem.id for problem in drawn], checkpoint, config)
        snapshots = Snapshots(work / "snapshots", shown, lambda requests: sampler.decode(
            requests, trainer.whole()), params.rl.inner_updates, steps)  # fmt: skip
        trainer.add_callback(snapshots)
        logs = [work / name if rank() == 0 else Path(os.devnull) for name in ("log.jsonl", "seconds.jsonl")]
        if deadline is not None:
            trainer.add_callback(Deadline(deadline, params.rl.inner_updates))
        trainer.add_callback(StepLog(logs[0], logs[1], sampler, meter, params.rl, curves))
        trainer.train(resume_from_checkpoint=resume_from)
    model = trainer.whole(first_only=True)
    if rank() > 0:
        return
    with finished(model, checkpoint, work, out) as (partial, _):
        shutil.copyfile(work / "log.jsonl", partial / "log.jsonl")
        snapshots.write(partial / "rollouts.parquet")
        metrics = summary(read_log(work / "log.jsonl"), params.rl.prompts) | {"processes": world_size()}
        write_json(partial / "metrics.json", metrics)


def check_params(params: Params, policy: str) -> None:
    """Raises `ParamsError` if `policy` is unknown or a step's rollouts do not split into micro-batches."""
    if policy not in params.rl.policies:
        raise ParamsError(f"rl.policies: {policy!r} is not allowed; allowed: {sorted(params.rl.policies)}")
    rows, processes = params.rl.prompts * params.rl.group, world_size()
    if rows % (params.rl.rows_per_device * processes):
        raise ParamsError(f"rl.rows_per_device: {params.rl.rows_per_device} is not allowed; allowed: a "
                          f"divisor of rl.prompts * rl.group / processes = {rows} / {processes}")


def new_trainer(
    params: Params, sampler: Sampler, prompts: list[str], checkpoint: Path, config: GRPOConfig
) -> PackedGRPOTrainer:
    """Returns what trains the model of `checkpoint`; with `rl.lora`, adapters on each linear layer but the
    output layer."""
    rl, grammar, lora = params.rl, params.grammar, params.rl.lora
    threads = sum(grammar.max_children**depth for depth in range(params.engine.max_depth + 1))
    trainer = PackedGRPOTrainer(
        sampler.sample, prompts=prompts, model=load_trainable(checkpoint, params.engine.device), args=config,
        processing_class=AutoTokenizer.from_pretrained(checkpoint, local_files_only=True),
        peft_config=lora and LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )  # fmt: skip
    for model in filter(None, (trainer.model, trainer.ref_model)):
        one_size(model, rl.rows_per_device * threads * grammar.window)
    return trainer


def trainer_config(params: Params, policy: str, work: Path) -> GRPOConfig:
    """One generation batch of prompts x group rows is one optimizer step, repeated `inner_updates` times."""
    rl = params.rl
    return GRPOConfig(
        output_dir=str(work),
        max_steps=steps_of(params, policy) * rl.inner_updates, per_device_train_batch_size=rl.rows_per_device,
        gradient_accumulation_steps=rl.prompts * rl.group // (rl.rows_per_device * world_size()),
        num_generations=rl.group, num_iterations=rl.inner_updates, temperature=rl.temperature,
        max_completion_length=params.engine.max_tokens, use_bias_correction_kl=False,
        loss_type="grpo", epsilon=rl.clip, beta=rl.policies[policy].kl,
        optim={"sgd": "sgd", "adamw": "adamw_torch_fused"}[rl.optimizer],
        learning_rate=rl.learning_rate, lr_scheduler_type="constant_with_warmup",
        warmup_steps=rl.warmup_steps * rl.inner_updates, weight_decay=0.0,
        max_grad_norm=rl.max_grad_norm, seed=params.seed, shuffle_dataset=False,
        bf16=False, gradient_checkpointing=False, router_aux_loss_coef=0.0,
        use_cpu=resolve_device(params.engine.device).type == "cpu",
        save_steps=rl.checkpoint_steps * rl.inner_updates, save_total_limit=1,
        logging_steps=1, logging_nan_inf_filter=False, report_to="none", disable_tqdm=True,
    )  # fmt: skip


def run_identity(params: Params, policy: str, problems: list[Path], checkpoint: Path) -> dict[str, Any]:
    """Returns everything that the states of a run depend on."""
    settings = params.model_dump(mode="json", include={"seed", "grammar", "engine", "rl"})
    settings["rl"]["policies"] = {policy: settings["rl"]["policies"][policy]}
    if settings["rl"]["servers"]:
        del settings["rl"]["servers"]["endpoints"]  # a run goes on with servers elsewhere
    return identity(settings, [*problems, *model_files(checkpoint)])
