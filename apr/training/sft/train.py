"""Supervised training: traces -> a checkpoint (section 3.2).

Deviations from the paper: threads are packed into rows (no thread sees another), and only a share of the
unsuccessful children is seen (`sft.child_share`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging
from trl import SFTConfig

from apr.core.errors import ParamsError
from apr.core.files import open_work, write_json, write_text
from apr.core.model_files import model_files, tokenizer_files
from apr.core.params import Params
from apr.core.ranks import rank, world_size
from apr.core.seeds import derive_seed
from apr.engine.checkpoint import resolve_device
from apr.engine.flops import bfloat16_peak, sizes_of
from apr.language.tokenizer import load_language
from apr.language.vocabulary import BaseVocabulary
from apr.training.attention import one_size
from apr.training.checkpoint import finished, identity
from apr.training.curves import Curves
from apr.training.deadline import Deadline
from apr.training.layers import quickest, use_kernels
from apr.training.sft.base import starting_model
from apr.training.sft.data import RowCollator, Threads, pack_rows, read_threads
from apr.training.sft.pace import Pace
from apr.training.sft.trainer import PackedSFTTrainer
from apr.training.sharding import before_sharding, gather


def train_sft(
    params: Params, method: str, traces: Path, tokenizer: Path, out: Path, deadline: float | None = None
) -> None:
    """Trains `method`'s model on `traces` and writes the checkpoint directory `out`.

    `out` holds weights, tokenizer, `log.jsonl` and `metrics.json`, which equal runs have alike to the byte;
    `<out>.seconds.jsonl` says how fast it went (see `Pace`; on a GPU of `apr.engine.flops` with the share of
    its bfloat16 FLOP/s that the model takes, Muon left out). State is saved every `sft.checkpoint_steps` in
    `<out>.work`; a run that finds it there continues from the last state, provided that parameters and data
    are the same. Under `accelerate launch` the processes share the rows of every step; their number changes
    the result by rounding alone. Raises `DataError`, `CheckpointError` or `ParamsError` on bad input and
    `AprError` if a loss that is logged is not finite. With a `deadline`, in seconds of `time.monotonic`, it
    takes as many steps as end by then (`Deadline`), and equal runs differ.
    """
    torch.set_num_threads(params.engine.torch_threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    vocabulary = load_language(tokenizer).vocabulary
    threads, rows = _packed(params, method, traces, vocabulary)
    lengths, work = np.diff(threads.starts), out.with_name(out.name + ".work")
    tokens = _after_steps([lengths[row].sum() for row in rows], params.sft.rows_per_step)
    trainer = _trainer(params, method, tokenizer, vocabulary, threads, rows, tokens, work)
    if deadline is not None:
        trainer.add_callback(Deadline(deadline))
    with trainer.accelerator.main_process_first():
        resume_from = open_work(work, _identity(params, method, traces, tokenizer))
    skeleton = before_sharding(trainer)
    trainer.train(resume_from_checkpoint=resume_from)
    model = gather(trainer.accelerator.unwrap_model(trainer.model), skeleton, first_only=True)
    if rank() > 0:
        return
    log = [line | {"tokens": tokens[int(line["step"])]}
           for line in trainer.state.log_history if "loss" in line]  # fmt: skip
    steps = trainer.state.global_step
    seen = sum(map(len, rows[: steps * params.sft.rows_per_step]))
    metrics = {"threads": len(lengths), "epochs": seen / len(lengths), "processes": world_size(),
               "steps": steps, "tokens": log[-1]["tokens"], "loss": log[-1]["loss"]}  # fmt: skip
    with finished(model, tokenizer, work, out) as (partial, model):
        write_text(partial / "log.jsonl", "".join(json.dumps(line, sort_keys=True) + "\n" for line in log))
        write_json(partial / "metrics.json", metrics | {"parameters": model.num_parameters()})


def _packed(
    params: Params, method: str, traces: Path, vocabulary: BaseVocabulary
) -> tuple[Threads, list[list[int]]]:
    """The threads that `method` trains on, and the rows that they are packed into, of whole steps."""
    sft = params.sft
    threads = read_threads(
        Path(traces), child_share=sft.child_share, seed=params.seed, vocabulary_size=vocabulary.size,
        longest=min(params.grammar.window, sft.row_tokens),
    )  # fmt: skip
    lengths, seed = np.diff(threads.starts).tolist(), derive_seed(params.seed, "sft", method)
    rows = pack_rows(lengths, sft.row_tokens, sft.tokens[method], seed)
    return threads, rows[: max(1, len(rows) // sft.rows_per_step) * sft.rows_per_step]


def _trainer(
    params: Params, method: str, tokenizer: Path, vocabulary: BaseVocabulary, threads: Threads,
    rows: list[list[int]], tokens: list[int], work: Path,
) -> PackedSFTTrainer:  # fmt: skip
    """Before its first step; `tokens` are those of the first 0, 1, 2, ... steps."""
    sft, processes, device = params.sft, world_size(), resolve_device(params.engine.device)
    if sft.rows_per_step % processes:
        raise ParamsError(f"sft.rows_per_step: {sft.rows_per_step} is not allowed; allowed: a multiple of "
                          f"{processes}, the number of processes")
    model, lora = starting_model(params, method, vocabulary)
    one_size(model, sft.row_tokens)
    squares = np.diff(threads.starts) ** 2
    sums = zip(tokens, _after_steps([squares[row].sum() for row in rows], sft.rows_per_step), strict=True)
    flops = [3 * sizes_of(model).forward(*both) for both in sums]
    peak = None if lora else bfloat16_peak(device)  # adapters: few weights have gradients
    seconds = work / "seconds.jsonl" if rank() == 0 else None
    curves = Curves(sft.report_to, work.with_suffix(""))
    precision = _precision(params)
    kernels = lora is None and use_kernels(model, device, precision)
    # Without kernels a CPU is slower by autocast than in float32: only where it is asked for.
    autocast = not kernels and (device.type == "cuda" or sft.precision == "bfloat16")
    trainer = PackedSFTTrainer(
        model=model,
        args=_config(params, work, len(tokens) - 1, derive_seed(params.seed, "sft", method),
                     bfloat16=autocast and precision == torch.bfloat16),
        train_dataset=Dataset.from_dict({"threads": rows}),
        data_collator=RowCollator(threads),
        processing_class=PreTrainedTokenizerFast.from_pretrained(tokenizer),
        peft_config=lora,
        matrix_learning_rate=sft.matrix_learning_rate if sft.optimizer == "muon" else None,
        precision=precision,
        callbacks=[Pace(f"sft {method}", seconds, curves, tokens, flops, peak and peak * processes)],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _after_steps(amounts: list[int], rows_per_step: int) -> list[int]:
    """Returns the sum of `amounts`, one a row, over the rows of the first 0, 1, 2, ... steps."""
    ends = np.arange(0, len(amounts) + rows_per_step, rows_per_step).clip(max=len(amounts))
    return np.cumsum([0, *amounts])[ends].tolist()


def _precision(params: Params) -> torch.dtype:
    """Of the operands of matrix products: `sft.precision`."""
    if params.sft.precision == "auto":
        return quickest(resolve_device(params.engine.device))
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[params.sft.precision]


def _config(params: Params, work: Path, steps: int, seed: int, bfloat16: bool) -> SFTConfig:
    sft, device = params.sft, resolve_device(params.engine.device)
    return SFTConfig(
        output_dir=str(work), max_steps=steps, seed=seed % 2**32,
        per_device_train_batch_size=1, gradient_accumulation_steps=sft.rows_per_step // world_size(),
        learning_rate=sft.learning_rate, lr_scheduler_type=sft.schedule,
        warmup_steps=round(sft.warmup_share * steps), weight_decay=sft.weight_decay, max_grad_norm=1.0,
        bf16=bfloat16, use_cpu=device.type == "cpu",
        gradient_checkpointing=False, router_aux_loss_coef=0.0,
        train_sampling_strategy="sequential",  # pack_rows has shuffled
        packing=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False, dataloader_pin_memory=device.type == "cuda",
        save_steps=sft.checkpoint_steps, save_total_limit=2,
        logging_steps=max(1, steps // 200), logging_nan_inf_filter=False,
        average_tokens_across_devices=False, report_to="none", disable_tqdm=True,
    )  # fmt: skip


def _identity(params: Params, method: str, traces: Path, tokenizer: Path) -> dict[str, Any]:
    settings = params.model_dump(mode="json", include={"seed", "model", "sft"})
    settings |= {"method": method, "window": params.grammar.window, "precision": str(_precision(params))}
    base = model_files(Path(params.sft.base)) if params.sft.base else []
    return identity(settings, [Path(traces), *tokenizer_files(Path(tokenizer)), *base])
