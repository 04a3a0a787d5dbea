"""Seconds of a decoding step on the device at hand: passes of fixed shapes, on a GPU replayed as CUDA graphs,
against the same passes launched one by one.

    python -m benchmarks.decode --threads 16 256 2048 --reach 512

Threads of random lengths up to `--reach` are decoded by a Llama of random weights, sampling at temperature 1.
The figures are medians of `--steps` steps; the two take turns in one process. Elsewhere than on a GPU nothing
is replayed, so that fixed shapes are all that differs.
"""

import argparse
import time
from statistics import median

import numpy as np
import torch

from apr.core.params import Model
from apr.engine.checkpoint import resolve_device
from apr.engine.runners import graphs
from apr.engine.runners.padded import PaddedModel
from apr.engine.runners.static import StaticModel
from apr.engine.scheduler import Batch
from apr.training.checkpoint import new_model

WORDS = 130


def measure(model, threads: int, reach: int, steps: int) -> tuple[float, float]:
    """Seconds of a launched and of a fixed step, as medians."""
    rng = np.random.default_rng(0)
    launched, fixed = PaddedModel(model, threads, reach), StaticModel(model, threads, reach)
    ids = rng.integers(WORDS, size=(threads, reach))
    end = rng.integers(reach // 4, reach, threads)
    batch = Batch(ids, np.arange(threads), end - 1, end, np.ones(threads), rng.random(threads))

    def step(way) -> float:
        started = time.perf_counter()
        way()
        return time.perf_counter() - started

    ways = [lambda: launched.sample(batch), lambda: fixed.sample(batch)]
    with torch.inference_mode():
        (tokens, _), (others, _) = (way() for way in ways)
        if (tokens != others).mean() > 0.01:
            raise SystemExit(f"{(tokens != others).mean():.1%} of the sampled tokens differ")
        taken = [[step(way) for way in ways] for _ in range(steps)]
    one, other = (median(column) for column in zip(*taken, strict=True))
    return one, other


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[16, 256, 2048], help="decoded together")
    parser.add_argument("--reach", type=int, default=512, help="longest thread, in tokens")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shape", type=int, nargs=5, default=[5, 256, 4, 4, 576],
                        metavar=("LAYERS", "HIDDEN", "HEADS", "KV_HEADS", "FFN"))  # fmt: skip
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    device = resolve_device("auto")
    if device.type != "cuda":
        graphs.recorder = lambda device: lambda step: step
    shape = Model(**dict(zip(("layers", "hidden", "heads", "kv_heads", "ffn"), args.shape, strict=True)))
    model = new_model(shape, WORDS, 0, args.reach, 0, args.attention).eval()
    model = model.to(device, getattr(torch, args.dtype))
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    for threads in args.threads:
        one, other = measure(model, threads, args.reach, args.steps)
        print(f"{threads:6d} threads: launched {one * 1e3:8.2f} ms, fixed {other * 1e3:8.2f} ms a step "
              f"({threads / other:.0f} tokens/s), {one / other:.2f} times as fast", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
