"""Tokens a second of supervised training, and the loss that they buy: the layers' kernels against the layers
of transformers, products in bfloat16 against float32, and TRL's own SFTTrainer, in one run on this machine.

    python -m benchmarks.sft --tokens 200000 --seeds 5

Every way but TRL's trains the default model on the same rows by `apr.training.sft`; they take turns, seed by
seed. The rate is the median over the logged steps, the loss the mean of the last tenth of them; two ways are
compared by the mean and the range over the seeds of their ratio, or difference. TRL's trainer packs the same
threads into rows of as many tokens (`bfd`), for as many steps of AdamW, and keeps no thread apart.
"""

import argparse
import json
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from apr.core.params import Params, load_params
from apr.language.tokenizer import load_language
from apr.tasks import make_tokenizer
from apr.tasks.problems import make_problems
from apr.training.checkpoint import new_model
from apr.training.sft.data import read_threads
from apr.training.sft.train import train_sft
from apr.training.traces import make_traces

METHOD, PROBLEMS = "apr", 3000
WAYS = {
    "transformers, float32": ("float32", False),
    "kernels, float32": ("float32", True),
    "kernels, bfloat16": ("bfloat16", True),
}


def changed(params: Params, tokens: int, seed: int, precision: str = "auto") -> Params:
    sft = params.sft.model_copy(update={"tokens": {METHOD: tokens}, "precision": precision})
    problems = params.problems.model_copy(update={"train": PROBLEMS, "validation": 1, "test": 1})
    traces = params.traces.model_copy(update={"problems": PROBLEMS})
    return params.model_copy(update={"seed": seed, "sft": sft, "problems": problems, "traces": traces})


def ours(params: Params, folder: Path, kernels: bool) -> tuple[float, float]:
    """Tokens a second and loss of one training."""
    with TemporaryDirectory() as place, ExitStack() as stack:
        if not kernels:
            stack.enter_context(patch("apr.training.sft.train.use_kernels", lambda *_: False))
        out = Path(place) / METHOD
        train_sft(params, METHOD, folder / "traces.parquet", folder / "tokenizer", out)
        lines = [json.loads(line) for line in out.with_name(f"{METHOD}.seconds.jsonl").open()]
        losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").open()]
    return median(line["tokens_per_second"] for line in lines), mean(losses[-len(losses) // 10 :])


def trl(params: Params, folder: Path) -> float:
    """Tokens a second of TRL's trainer."""
    language, sft = load_language(folder / "tokenizer"), params.sft
    vocabulary, window = language.vocabulary, params.grammar.window
    tokens, loss, starts = read_threads(
        folder / "traces.parquet", child_share=sft.child_share, seed=params.seed, longest=window,
        vocabulary_size=vocabulary.size,
    )  # fmt: skip
    spans = [slice(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    labels = [[int(t) if seen else -100 for t, seen in zip(tokens[s], loss[s], strict=True)] for s in spans]
    rows = Dataset.from_dict({"input_ids": [tokens[s].tolist() for s in spans], "labels": labels})
    model = new_model(params.model, vocabulary.size, vocabulary.pad, sft.row_tokens, params.seed)
    steps = sft.tokens[METHOD] // sft.row_tokens
    with TemporaryDirectory() as place:
        config = SFTConfig(
            output_dir=place, max_steps=steps, packing=True, max_length=sft.row_tokens, use_cpu=True,
            per_device_train_batch_size=1, learning_rate=sft.learning_rate, gradient_checkpointing=False,
            bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
        trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        started = time.perf_counter()
        trainer.train()
    return steps * sft.row_tokens / (time.perf_counter() - started)


def said(values: list[float], unit: str = "") -> str:
    return f"{mean(values):.3g}{unit} [{min(values):.3g}, {max(values):.3g}]"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    peers = []
    for seed in range(options.seeds):
        with TemporaryDirectory() as place:
            folder, own = Path(place), changed(params, options.tokens, seed)
            make_problems(own, folder / "problems")
            make_tokenizer(own, folder / "tokenizer")
            make_traces(own, METHOD, folder / "problems/train.parquet", folder / "tokenizer",
                        folder / "traces.parquet")  # fmt: skip
            for name, (precision, kernels) in WAYS.items():
                its = changed(params, options.tokens, seed, precision)
                found[name].append(ours(its, folder, kernels))
            peers.append(trl(own, folder))
    first = found["transformers, float32"]
    for name, runs in found.items():
        ratios = [rate / before for (rate, _), (before, _) in zip(runs, first, strict=True)]
        losses = [loss - before for (_, loss), (_, before) in zip(runs, first, strict=True)]
        print(f"{name:24} {said([rate for rate, _ in runs])} tokens/s, {said(ratios)} times as many, "
              f"loss {said([loss for _, loss in runs])}, difference {said(losses)}")  # fmt: skip
    ratios = [rate / peer for (rate, _), peer in zip(found["kernels, bfloat16"], peers, strict=True)]
    print(f"{'TRL, float32':24} {said(peers)} tokens/s; the kernels in bfloat16 {said(ratios)} times as many")


if __name__ == "__main__":
    main()
