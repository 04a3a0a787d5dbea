"""Sampled tokens per second on recorded rollouts: this engine against four others, in one run.

    python -m benchmarks.rollout                # exits with 1 where the engine does worse than recorded
    python -m benchmarks.rollout --write        # records what it has measured in `rollout.json`

The rollouts of `workload.json` (see `benchmarks.workload`) are replayed on a model of the default shape with
random weights, so that every contender decodes the same tokens. The workload `long` is the same with parents
whose prompts have 640 more tokens, in windows of 1,024:

    engine      apr.engine: slots, children beside everybody's threads, a parent's keys stay where they are
    resubmit    the same engine, but a join submits the whole parent again, as the paper's server code does
    generate    transformers' generate on static batches, wave by wave: parents, all children, parents again
    continuous  transformers' continuous batching, pages and batch tuned for a CPU; joins submit again
    vllm        vLLM on this CPU over HTTP, with its prefix cache (`make real` installs it; left out without)

Each contender runs in a process of its own; the rate is the best of its repeats, the memory its peak (of vLLM
what its processes have at the end). What is recorded, and compared, are ratios of rates within one run: they
depend on the processor, but far less on what else it does. A last line for the engine at 256 live threads has
the machine's own bound: the weights' FLOPs at the GEMM rate, and keys and values read at the bandwidth, both
measured here.
"""

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from apr.core.params import Model
from apr.core.provenance import provenance
from apr.engine.interface import Decoder, Sampling
from apr.engine.servers.protocols import wire_of
from apr.engine.servers.remote import RemoteDecoder
from apr.engine.slots import SlotEngine
from apr.training.checkpoint import new_model, save_checkpoint
from benchmarks.apart import apart
from benchmarks.workload import Tree, long_parents, read_workload
from tests.real.server import ROOT, VLLM, Vllm

RECORDED = Path(__file__).with_suffix(".json")
TOLERANCE = 0.3
"""Share of a recorded ratio that the engine may lose."""
TOKENIZER = ROOT / "models/rl/apr"
"""Of this many words, for vLLM, which wants one."""
WORDS, PAD = 151, 0
WORKLOADS = {"recorded": (256, read_workload()), "long": (1024, long_parents(read_workload()))}
"""Window and rollouts."""
SLOTS = 256
Measured = tuple[float, float]
"""Tokens per second and MiB."""
Ratios = dict[str, dict[str, dict[str, float]]]
"""By workload, rollouts at a time and contender."""


def text(length: int) -> list[int]:
    return random.choices(range(6, WORDS), k=length)


def replay(decoder: Decoder, work: list[Tree], concurrent: int, resubmit: bool = False) -> None:
    """A thread's end is its limit; keys are (rollout, child), -1 for the parent."""
    waiting = list(enumerate(work))[::-1]
    parents: dict[int, list[int]] = {}
    left: dict[int, int] = {}

    def open_next() -> None:
        if waiting:
            index, tree = waiting.pop()
            parents[index] = text(tree.prompt)
            left[index] = len(tree.children)
            decoder.open((index, -1), parents[index], Sampling(1.0, index), tree.prompt + tree.before)

    def join(index: int) -> None:
        tree, joined = work[index], text(work[index].joined)
        limit = len(parents[index]) + tree.joined + tree.after
        parents[index] += joined
        if resubmit:
            decoder.close((index, -1))
            decoder.open((index, -1), parents[index], Sampling(1.0, index), limit)
        else:
            decoder.extend((index, -1), joined, limit)

    for _ in range(concurrent):
        open_next()
    while decoder.busy:
        for key, segment in decoder.step():
            index, child = key
            tree = work[index]
            if child >= 0:
                decoder.close(key)
                left[index] -= 1
                if not left[index]:
                    join(index)
            elif left[index]:
                parents[index] += segment.ids
                for place, (prompt, sampled) in enumerate(tree.children):
                    decoder.open((index, place), text(prompt), Sampling(1.0, place), prompt + sampled)
            else:
                decoder.close(key)
                open_next()


def generate(model: PreTrainedModel, window: int, work: list[Tree], concurrent: int) -> None:
    """Static batches of `concurrent` rollouts; a batch decodes until its longest thread has ended."""
    for start in range(0, len(work), concurrent):
        batch = work[start : start + concurrent]
        wave(model, [(tree.prompt, tree.before) for tree in batch])
        children = [(prompt, sampled) for tree in batch for prompt, sampled in tree.children]
        for first in range(0, len(children), SLOTS):
            wave(model, children[first : first + SLOTS])
        spawned = [tree for tree in batch if tree.children]
        wave(model, [(tree.prompt + tree.before + tree.joined, tree.after) for tree in spawned])


def wave(model: PreTrainedModel, threads: list[tuple[int, int]]) -> None:
    if not threads:
        return
    width = max(prompt for prompt, _ in threads)
    ids = torch.tensor([[PAD] * (width - prompt) + text(prompt) for prompt, _ in threads])
    mask = torch.tensor([[0] * (width - prompt) + [1] * prompt for prompt, _ in threads])
    longest = max(sampled for _, sampled in threads)
    model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=longest,
                   min_new_tokens=longest, eos_token_id=None, pad_token_id=PAD)  # fmt: skip


def continuous(model: PreTrainedModel, window: int, work: list[Tree], concurrent: int) -> None:
    settings = GenerationConfig(do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=PAD)
    manager = model.init_continuous_batching(
        settings,
        ContinuousBatchingConfig(page_size=32, num_blocks=SLOTS * window // 32, max_batch_tokens=512,
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


def slots(model: PreTrainedModel, window: int, work: list[Tree], concurrent: int,
          resubmit: bool = False) -> None:  # fmt: skip
    replay(SlotEngine(model, [], SLOTS, window, torch.get_num_threads()), work, concurrent, resubmit)


def served(url: str, work: list[Tree], concurrent: int) -> None:
    with RemoteDecoder([url], wire_of("vllm", "apr"), [], WORDS, SLOTS, timeout=600.0) as decoder:
        replay(decoder, work, concurrent)


HERE: dict[str, Callable[[PreTrainedModel, int, list[Tree], int], None]] = {
    "engine": slots, "resubmit": partial(slots, resubmit=True),
    "generate": generate, "continuous": continuous,
}  # fmt: skip
"""Contenders in a process of their own."""
CONTENDERS = [*HERE, "vllm"] if VLLM.is_file() else list(HERE)


def rate_of(run: Callable[[list[Tree], int], None], work: list[Tree], concurrent: int, repeats: int) -> float:
    """Tokens per second, after a short run that is not timed."""
    run(work[: min(concurrent, 2)], concurrent)
    best = min(seconds(lambda: run(work, concurrent)) for _ in range(repeats))
    return sum(tree.sampled for tree in work) / best


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def model_of(window: int) -> PreTrainedModel:
    return new_model(Model(), WORDS, PAD, window, seed=0).eval()


def measure(name: str, window: int, work: list[Tree], concurrent: int, threads: int,
            repeats: int) -> Measured:  # fmt: skip
    """Tokens per second, and peak memory in MiB beyond that of the process with its model."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    random.seed(0)
    model = model_of(window)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rate = rate_of(partial(HERE[name], model, window), work, concurrent, repeats)
    return rate, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure_vllm(window: int, cases: dict[int, list[Tree]], repeats: int) -> dict[int, Measured]:
    """The same for each number of rollouts at a time, by one server; the memory of all its processes."""
    found = {}
    with TemporaryDirectory() as name:
        save_checkpoint(model_of(window), TOKENIZER, folder := Path(name) / "model")
        with Vllm(folder, Path(name) / "log.txt", window) as server:
            for concurrent, work in cases.items():
                rate = rate_of(partial(served, server.url), work, concurrent, repeats)
                processes = psutil.Process().children(recursive=True)
                found[concurrent] = rate, sum(process.memory_info().rss for process in processes) / 2**20
    return found


def bound(work: list[Tree], threads: int) -> tuple[float, float, float]:
    """Tokens per second that GEMM rate and bandwidth would allow; GFLOP/s and GB/s."""
    torch.set_num_threads(threads)
    best = lambda function: min(seconds(function) for _ in range(8))  # noqa: E731
    a, b, big = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.zeros(1 << 26)

    flops = 2 * 1024**3 / best(lambda: a @ b)
    bandwidth = 4 * len(big) / best(big.sum)
    model = Model()
    weights = sum(parameter.numel() for parameter in model_of(256).parameters())
    contexts = [length for tree in work for length in tree.contexts]
    position = 2 * 4 * model.layers * model.hidden * model.kv_heads // model.heads
    per_token = 2 * weights / flops + position * sum(contexts) / len(contexts) / bandwidth
    return 1 / per_token, flops / 1e9, bandwidth / 1e9


def ratios(found: dict[str, Measured]) -> dict[str, float]:
    """What the engine does for each token of the others."""
    engine = found["engine"][0]
    return {name: round(engine / rate, 2) for name, (rate, _) in found.items() if name != "engine"}


def worse(found: Ratios, recorded: Ratios) -> list[str]:
    """Where the engine has lost more than `TOLERANCE` of a recorded ratio."""
    return [f"{workload}, {concurrent} at a time: {ratio} times {name}, recorded {before[name]}"
            for workload, rows in found.items() for concurrent, row in rows.items()
            if (before := recorded.get(workload, {}).get(concurrent))
            for name, ratio in row.items() if ratio < (1 - TOLERANCE) * before.get(name, 0.0)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 8, 64], help="rollouts at a time")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS, metavar="NAME")
    parser.add_argument("--waves", type=int, default=1, help="rollouts for each of those at a time")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of torch, and workers of the engine")
    parser.add_argument("--write", action="store_true", help="record the ratios")
    args = parser.parse_args()
    processor = provenance()["machine"]["processor"]
    only, table = list(dict.fromkeys(["engine", *args.only])), {}
    for workload in args.workloads:
        window, trees = WORKLOADS[workload]
        cases = {concurrent: (trees * args.waves)[: max(8, concurrent * args.waves)]
                 for concurrent in args.concurrent}  # fmt: skip
        by_vllm = measure_vllm(window, cases, args.repeats) if "vllm" in only else {}
        print(f"{workload}, windows of {window}, {processor}, threads: {args.threads}")
        print("at a time  " + "  ".join(f"{name:>22}" for name in only) + "  engine / best other")
        table[workload] = {}
        for concurrent, work in cases.items():
            found = {name: by_vllm[concurrent] if name == "vllm" else
                     apart(measure, name, window, work, concurrent, args.threads, args.repeats)
                     for name in only}  # fmt: skip
            table[workload][str(concurrent)] = ratios(found)
            others = [ratio for name, ratio in ratios(found).items() if name != "resubmit"]
            cells = (f"{rate:8.0f} t/s {memory:5.0f} MiB" for rate, memory in found.values())
            best = f"{min(others):.2f}" if others else ""
            print(f"{concurrent:9d}  " + "  ".join(f"{cell:>22}" for cell in cells) + f"  {best}", flush=True)
    window, trees = WORKLOADS["recorded"]
    rate, _ = apart(measure, "engine", window, trees * 4, 256, args.threads, args.repeats)
    most, flops, bandwidth = bound(trees, args.threads)
    print(f"256 live threads: {rate:.0f} t/s, {rate / most:.0%} of the bound of {most:.0f} t/s "
          f"({flops:.0f} GFLOP/s, {bandwidth:.1f} GB/s)")  # fmt: skip
    recorded = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    before = recorded.get("engine over", {})
    if args.write:
        for workload, rows in table.items():
            for concurrent, row in rows.items():
                before.setdefault(workload, {}).setdefault(concurrent, {}).update(row)
        RECORDED.write_text(json.dumps({"processor": processor, "engine over": before}, indent=1) + "\n")
    elif said := worse(table, before):
        sys.exit("benchmarks.rollout: slower than recorded\n" + "\n".join(said))


if __name__ == "__main__":
    main()
