"""Tokens per second of the slot engine and of `transformers` `generate` on a static batch, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.rollout --threads 1 64 256

The model (0.8M parameters, random weights) ends a thread with probability ~1/130 per token. Both decode the
same number of prompts at temperature 1, `generate` in batches that wait for their longest thread.
"""

import argparse
import random
import time
from collections.abc import Callable

import torch
from transformers import LlamaForCausalLM

from apr.core.params import Model
from apr.engine.checkpoint import new_model
from apr.engine.interface import Sampling
from apr.engine.slots import SlotEngine

WORDS, PAD, STOP = 130, 0, 5


def slot_engine(model: LlamaForCausalLM, prompts: list[list[int]], threads: int, window: int) -> int:
    engine = SlotEngine(model, [STOP], threads, window)
    for key, prompt in enumerate(prompts):
        engine.open(key, prompt, Sampling(1.0, key), window)
    tokens = 0
    while engine.busy:
        for key, segment in engine.step():
            tokens += len(segment.ids)
            engine.close(key)
    return tokens


def generate(model: LlamaForCausalLM, prompts: list[list[int]], threads: int, window: int) -> int:
    tokens = 0
    for start in range(0, len(prompts), threads):
        batch = prompts[start : start + threads]
        width = max(map(len, batch))
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        output = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_length=window,
            eos_token_id=STOP,
            pad_token_id=PAD,
        )[:, width:]
        ended = (output == STOP).int().cumsum(1) - (output == STOP).int()
        tokens += int((ended == 0).sum())
    return tokens


def rate(decode: Callable[..., int], *args: object) -> float:
    started = time.perf_counter()
    return decode(*args) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--waves", type=int, default=3, help="prompts per thread")
    parser.add_argument("--window", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = new_model(Model(), WORDS, PAD, args.window, seed=0).eval()
    rng = random.Random(0)
    print("threads  slot engine  generate  ratio")
    for threads in args.threads:
        prompts = [
            [rng.randrange(6, WORDS) for _ in range(rng.randint(8, 20))] for _ in range(args.waves * threads)
        ]
        ours, theirs = (
            rate(decode, model, prompts, threads, args.window) for decode in (slot_engine, generate)
        )
        print(f"{threads:7d}  {ours:7.0f} t/s  {theirs:4.0f} t/s  {ours / theirs:5.2f}", flush=True)


if __name__ == "__main__":
    main()
