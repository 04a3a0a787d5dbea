"""Sampled tokens per second on a recorded workload: this engine against three others, in one run.

    python -m benchmarks.rollout --concurrent 1 8 64

The rollouts of `workload.json` (see `benchmarks.workload`) are replayed on a model of the default shape with
random weights, so that every contender decodes the same tokens:

    engine      apr.engine: slots, children beside everybody's threads, a parent's keys stay where they are
    resubmit    the same engine, but a join submits the whole parent again, as the paper's server code does
    generate    transformers' generate on static batches, wave by wave: parents, all children, parents again
    continuous  transformers' continuous batching, pages and batch tuned for a CPU; joins submit again

Each contender runs in a process of its own; the rate is the best of its repeats, the memory its peak. The
last line holds the engine at 256 live threads against the machine's own bound: the weights' FLOPs at the GEMM
rate, and the keys and values read at the bandwidth, both measured here.
"""

import argparse
import random
import resource
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from apr.core.params import Model
from apr.engine.interface import Sampling
from apr.engine.slots import SlotEngine
from apr.training.checkpoint import new_model
from benchmarks.apart import apart
from benchmarks.workload import Tree, read_workload

WORDS, PAD, WINDOW = 130, 0, 256
SLOTS = 256


def text(length: int) -> list[int]:
    return random.choices(range(6, WORDS), k=length)


def replay(model: LlamaForCausalLM, work: list[Tree], concurrent: int, resubmit: bool = False) -> None:
    """Through the engine. A thread's end is its limit; keys are (rollout, child), -1 for the parent."""
    engine = SlotEngine(model, [], SLOTS, WINDOW, torch.get_num_threads())
    waiting = list(enumerate(work))[::-1]
    parents: dict[int, list[int]] = {}
    left: dict[int, int] = {}

    def open_next() -> None:
        if waiting:
            index, tree = waiting.pop()
            parents[index] = text(tree.prompt)
            left[index] = len(tree.children)
            engine.open((index, -1), parents[index], Sampling(1.0, index), tree.prompt + tree.before)

    def join(index: int) -> None:
        tree, joined = work[index], text(work[index].joined)
        limit = len(parents[index]) + tree.joined + tree.after
        parents[index] += joined
        if resubmit:
            engine.close((index, -1))
            engine.open((index, -1), parents[index], Sampling(1.0, index), limit)
        else:
            engine.extend((index, -1), joined, limit)

    for _ in range(concurrent):
        open_next()
    while engine.busy:
        for key, segment in engine.step():
            index, child = key
            tree = work[index]
            if child >= 0:
                engine.close(key)
                left[index] -= 1
                if not left[index]:
                    join(index)
            elif left[index]:
                parents[index] += segment.ids
                for place, (prompt, sampled) in enumerate(tree.children):
                    engine.open((index, place), text(prompt), Sampling(1.0, place), prompt + sampled)
            else:
                engine.close(key)
                open_next()


def generate(model: LlamaForCausalLM, work: list[Tree], concurrent: int) -> None:
    """Static batches of `concurrent` rollouts; a batch decodes until its longest thread has ended."""
    for start in range(0, len(work), concurrent):
        batch = work[start : start + concurrent]
        wave(model, [(tree.prompt, tree.before) for tree in batch])
        children = [(prompt, sampled) for tree in batch for prompt, sampled in tree.children]
        for first in range(0, len(children), SLOTS):
            wave(model, children[first : first + SLOTS])
        spawned = [tree for tree in batch if tree.children]
        wave(model, [(tree.prompt + tree.before + tree.joined, tree.after) for tree in spawned])


def wave(model: LlamaForCausalLM, threads: list[tuple[int, int]]) -> None:
    if not threads:
        return
    width = max(prompt for prompt, _ in threads)
    ids = torch.tensor([[PAD] * (width - prompt) + text(prompt) for prompt, _ in threads])
    mask = torch.tensor([[0] * (width - prompt) + [1] * prompt for prompt, _ in threads])
    longest = max(sampled for _, sampled in threads)
    model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=longest,
                   min_new_tokens=longest, eos_token_id=None, pad_token_id=PAD)  # fmt: skip


def continuous(model: LlamaForCausalLM, work: list[Tree], concurrent: int) -> None:
    settings = GenerationConfig(do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=PAD)
    manager = model.init_continuous_batching(
        settings,
        ContinuousBatchingConfig(page_size=32, num_blocks=SLOTS * WINDOW // 32, max_batch_tokens=512,
                                 allow_block_sharing=False),
    )  # fmt: skip
    manager.start()
    waiting = list(enumerate(work))[::-1]
    left: dict[int, int] = {}
    running = 0

    def submit(name: str, prompt: int, sampled: int) -> None:
        nonlocal running
        running += 1
        manager.add_request(text(prompt), request_id=name, max_new_tokens=sampled)

    def open_next() -> None:
        if waiting:
            index, tree = waiting.pop()
            left[index] = len(tree.children)
            submit(f"{index} parent", tree.prompt, tree.before)

    for _ in range(concurrent):
        open_next()
    try:
        while running:
            result = manager.get_result(timeout=60)
            if result is None:
                raise RuntimeError("continuous batching has stopped")
            running -= 1
            index, kind = int(result.request_id.split()[0]), result.request_id.split()[1]
            tree = work[index]
            if kind == "child":
                left[index] -= 1
                if not left[index]:
                    submit(f"{index} rest", tree.prompt + tree.before + tree.joined, tree.after)
            elif kind == "parent" and tree.children:
                for place, (prompt, sampled) in enumerate(tree.children):
                    submit(f"{index} child {place}", prompt, sampled)
            else:
                open_next()
    finally:
        manager.stop(block=True)


CONTENDERS: dict[str, Callable[[LlamaForCausalLM, list[Tree], int], None]] = {
    "engine": replay, "resubmit": partial(replay, resubmit=True),
    "generate": generate, "continuous": continuous,
}  # fmt: skip


def measure(name: str, work: list[Tree], concurrent: int, threads: int, repeats: int) -> tuple[float, float]:
    """Tokens per second, and peak memory in MiB beyond that of the process with its model."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    random.seed(0)
    model = new_model(Model(), WORDS, PAD, WINDOW, seed=0).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = float("inf")
    CONTENDERS[name](model, work[: min(concurrent, 2)], concurrent)
    for _ in range(repeats):
        started = time.perf_counter()
        CONTENDERS[name](model, work, concurrent)
        best = min(best, time.perf_counter() - started)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return sum(tree.sampled for tree in work) / best, memory


def bound(work: list[Tree], threads: int) -> tuple[float, float, float]:
    """Tokens per second that GEMM rate and bandwidth would allow; GFLOP/s and GB/s."""
    torch.set_num_threads(threads)
    a, b, big = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.zeros(1 << 26)

    def seconds(function: Callable[[], object]) -> float:
        taken = []
        for _ in range(8):
            started = time.perf_counter()
            function()
            taken.append(time.perf_counter() - started)
        return min(taken)

    flops = 2 * 1024**3 / seconds(lambda: a @ b)
    bandwidth = 4 * len(big) / seconds(big.sum)
    model = Model()
    weights = sum(parameter.numel() for parameter in new_model(model, WORDS, PAD, WINDOW, 0).parameters())
    contexts = [length for tree in work for length in tree.contexts]
    position = 2 * 4 * model.layers * model.hidden * model.kv_heads // model.heads
    per_token = 2 * weights / flops + position * sum(contexts) / len(contexts) / bandwidth
    return 1 / per_token, flops / 1e9, bandwidth / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 8, 64], help="rollouts at a time")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--waves", type=int, default=4, help="rollouts for each of those at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch, and workers of the engine")
    args = parser.parse_args()
    trees = read_workload()
    print("concurrent  " + "  ".join(f"{name:>21}" for name in args.only) + "  engine / best other")
    for concurrent in args.concurrent:
        work = (trees * args.waves)[: max(8, concurrent * args.waves)]
        settings = work, concurrent, args.threads, args.repeats
        found = {name: apart(measure, name, *settings) for name in args.only}
        others = [rate for name, (rate, _) in found.items() if name not in ("engine", "resubmit")]
        ratio = f"{found['engine'][0] / max(others):.2f}" if others and "engine" in found else ""
        cells = (f"{rate:7.0f} t/s {memory:5.0f} MiB" for rate, memory in found.values())
        print(f"{concurrent:10d}  " + "  ".join(f"{cell:>21}" for cell in cells) + f"  {ratio}", flush=True)
    rate, _ = apart(measure, "engine", trees * 4, 256, args.threads, args.repeats)
    most, flops, bandwidth = bound(trees, args.threads)
    print(f"256 live threads: {rate:.0f} t/s, {rate / most:.0%} of the bound of {most:.0f} t/s "
          f"({flops:.0f} GFLOP/s, {bandwidth:.1f} GB/s)")  # fmt: skip


if __name__ == "__main__":
    main()
