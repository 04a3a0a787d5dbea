"""The steps of `workflow.gpu.quarter`."""

import json
import os
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.utils import logging

from apr.core.files import read_json
from apr.core.params import Model, Params, Policy, Sweep
from apr.core.provenance import provenance
from apr.engine.checkpoint import resolve_device
from apr.engine.interface import Sampling
from apr.engine.runners import graphs
from apr.engine.slots import SlotEngine
from apr.evaluation.statistics import interval
from apr.evaluation.sweep import evaluate
from apr.pipeline.plan import load_scale
from apr.training.checkpoint import new_model
from apr.training.rl.train import train_rl, trainer_config
from apr.training.sft.train import train_sft
from apr.training.traces import make_traces
from benchmarks.decode import WORDS, measure
from workflow.gpu.work import Work

METHOD = POLICY = "apr"
LARGE = Model(layers=7, hidden=512, heads=8, kv_heads=8, ffn=1376)
"""22M parameters: of these the share of the peak is asked for."""
MEANS = ("total", "sequential", "children", "malformed_threads", "truncated_threads")
"""Columns of an evaluation whose means are said."""
TO_WRITE = 12.0
"""Seconds before its time is up in which a training ends, to be written and packed."""


class Place(NamedTuple):
    """What a step works with."""

    work: Work
    params: Params

    @property
    def problems(self) -> Path:
        return self.work.carry / "data/problems"

    @property
    def tokenizer(self) -> Path:
        return self.work.carry / "data/tokenizer"

    @property
    def carried(self) -> Path:
        return self.work.carry / "checkpoint"

    @property
    def deadline(self) -> float:
        return self.work.end - TO_WRITE

    def say(self, **figures: Any) -> None:
        self.work.say(**figures)

    def pack(self, archive: str, *names: str) -> None:
        """Puts files and folders of the work with what comes back."""
        path = self.work.out / f"{archive}.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for name in names:
                tar.add(self.at(name), name)
        self.say(packed=path.name, bytes=path.stat().st_size)

    def at(self, name: str) -> Path:
        return self.work.work / name

    def newest(self, *names: str) -> Path:
        """Returns the first of these models that was made here, or else what was carried."""
        return next((self.at(name) for name in names if self.at(name).is_dir()), self.carried)


def place_of(work: Work) -> Place:
    """Returns what a step works with, after what has failed its tests is left out."""
    logging.set_verbosity_error()
    params = load_scale(work.scale)
    params = shrunk(params) if work.tiny else params
    if work.device:
        params = changed(params, engine={"device": work.device})
    if work.without:
        work.say(without=work.without)
    if "flex" in work.without:
        AttentionInterface.register("packed", dense)
        rows = max(1, params.sft.row_tokens // 4096)  # of which a mask of all pairs is not too large
        sizes = {"row_tokens": min(4096, params.sft.row_tokens), "rows_per_step": rows}
        params = changed(params, sft=sizes, rl={"rows_per_device": 2})
    if "graphs" in work.without:
        graphs.recorder = lambda device: None
    return Place(work, params)


def changed(params: Params, **sections: dict[str, Any]) -> Params:
    return params.model_copy(update={
        name: getattr(params, name).model_copy(update=values) for name, values in sections.items()
    })  # fmt: skip


def shrunk(params: Params) -> Params:
    """Returns the smallest sizes at which every step does something."""
    model = {"layers": 2, "hidden": 64, "heads": 2, "kv_heads": 2, "ffn": 96}
    return changed(
        params, traces={"problems": 200}, model=model,
        sft={"tokens": params.sft.tokens | {METHOD: 200_000}, "row_tokens": 2048, "checkpoint_steps": 50},
        rl={"prompts": 2, "group": 2, "rows_per_device": 2}, engine={"slots": 32, "max_tokens": 2048},
        eval={"problems": 4},
    )  # fmt: skip


def check(place: Place) -> None:
    """Says what the machine is, trains two steps on its CPU, and builds the configuration of RL."""
    params, device = place.params, resolve_device(place.params.engine.device)
    at = torch.ones(512, 512, device=device, dtype=torch.bfloat16)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    place.say(device=name, ones=(at @ at).sum().item(), cores=os.cpu_count(), **provenance()["versions"])
    few = changed(shrunk(params), engine={"device": "cpu"}, traces={"problems": 40})
    few = changed(few, sft={"tokens": {METHOD: 4096}})
    make_traces(few, METHOD, place.problems / "train.parquet", place.tokenizer, place.at("few.parquet"))
    train_sft(few, METHOD, place.at("few.parquet"), place.tokenizer, place.at("check"))
    trainer_config(held(params), POLICY, place.at("config"))
    place.say(loss=read_json(place.at("check/metrics.json"))["loss"], carried=place.carried.is_dir())


def traces(place: Place) -> None:
    """Writes the traces of some problems, then of all, on all cores but two."""
    started, workers = time.monotonic(), max(1, (os.cpu_count() or 1) - 2)
    for name, problems in ("some", 2000), ("traces", place.params.traces.problems):
        few = changed(place.params, traces={"problems": min(problems, place.params.traces.problems)})
        out = place.at(f"{name}.parquet")
        make_traces(few, METHOD, place.problems / "train.parquet", place.tokenizer, out, workers)
        lengths = pq.read_table(out, columns=["length"])["length"].to_numpy()
        took = round(time.monotonic() - started, 1)
        place.say(traces=name, threads=len(lengths), tokens=int(lengths.sum()), took=took)


def tests(place: Place) -> None:
    """Compares what the device computes with float64, the CPU, or launched passes."""
    import pytest

    class Teller:
        def pytest_runtest_logreport(self, report):
            if report.when == "call" or report.failed or report.skipped:
                error = {"error": str(report.longrepr).splitlines()[-1]} if report.failed else {}
                place.say(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2),
                          **dict(report.user_properties), **error)  # fmt: skip

    options = ["-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu", "tests/engine/test_static.py",
               "tests/training/sft"]  # fmt: skip
    sys.exit(pytest.main(options, plugins=[Teller()]))


def try_rl(place: Place) -> None:
    """Three steps of RL from what was carried: whether they work, and how long they take."""
    few = changed(held(place.params), rl={"steps": 3, "prompts": min(8, place.params.rl.prompts)})
    reinforce(place, few, place.carried, place.at("try_rl"))


def rl(place: Place) -> None:
    """Goes on by RL, for as many steps as there is time for; by other rollouts than those before."""
    start = place.newest("rl", "sft")
    params = changed(held(place.params), rl={"steps": 3 if place.work.tiny else 60})
    if start.name == "rl":
        params = params.model_copy(update={"seed": params.seed + 1})
    reinforce(place, params, start, place.at("rl"))
    place.pack("rl", "rl", "rl.seconds.jsonl")


def held(params: Params) -> Params:
    """Returns parameters whose policy is held at the most children."""
    policy = Policy(method=METHOD, children=params.grammar.max_children)
    return changed(params, rl={"policies": {POLICY: policy}})


def reinforce(place: Place, params: Params, checkpoint: Path, out: Path) -> None:
    problems = place.at("problems.parquet")  # 200,000 take seconds to read
    pq.write_table(pq.read_table(place.problems / "train.parquet").slice(0, 20_000), problems)
    with follow(place, out.with_name(f"{out.name}.work") / "log.jsonl", out / "log.jsonl"):
        train_rl(params, POLICY, problems, place.problems / "validation.parquet", checkpoint, out,
                 deadline=place.deadline)  # fmt: skip
    lines = [json.loads(line) for line in out.with_name(f"{out.name}.seconds.jsonl").open()]
    seconds = {name: round(fmean(line[name] for line in lines[len(lines) > 1 :]), 2)
               for name in ("rollout_seconds", "update_seconds")}  # fmt: skip
    place.say(start=str(checkpoint), steps=len(lines), memory_gb=memory(), **seconds)


def memory() -> float | None:
    """Returns the most memory of the GPU that this process had, in GB."""
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None


def decode(place: Place) -> None:
    """Steps by graphs against launches, and the engine against `generate` on the same work."""
    reach, sizes = (32, (2, 4)) if place.work.tiny else (512, (16, 256, 2048))
    device = resolve_device(place.params.engine.device)
    model = new_model(place.params.model, WORDS, 0, reach, 0).eval().to(device)
    for threads in sizes:
        launched, fixed = measure(model, threads, reach, 20)
        place.say(threads=threads, launched_ms=round(launched * 1e3, 3), fixed_ms=round(fixed * 1e3, 3),
                  tokens_per_second=round(threads / fixed))  # fmt: skip
    threads, new = sizes[1], reach // 4
    prompts = torch.randint(0, WORDS, (threads, 8), device=device)
    given = {"do_sample": True, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
    engine, width = SlotEngine(model, (), threads, reach), prompts.shape[1] + new
    plain = prompts.tolist()

    def by_engine() -> None:
        for key, prompt in enumerate(plain):
            engine.open(key, prompt, Sampling(1.0, key), width)
        while engine.busy:
            for ended, _ in engine.step():
                engine.close(ended)

    for turn, (name, way) in product(
        (1, 2), {"generate": lambda: model.generate(prompts, **given), "engine": by_engine}.items()
    ):
        started = time.perf_counter()
        way()
        rate = round(threads * new / (time.perf_counter() - started))
        place.say(**{name: turn}, threads=threads, tokens_per_second=rate)


def rates(place: Place) -> None:
    """Supervised training of the model, then of 22M parameters, each as long as the other."""
    file, begun = wait(place, "some.parquet"), time.monotonic()
    few = min(60_000_000, place.params.sft.tokens[METHOD])
    params = changed(place.params, sft={"tokens": place.params.sft.tokens | {METHOD: few}})
    supervise(place, params, file, place.at("rates"), (begun + place.deadline) / 2)
    large = params if place.work.tiny else params.model_copy(update={"model": LARGE})
    supervise(place, large, file, place.at("rates_large"))


def sft(place: Place) -> None:
    """Trains on as much as there is time for."""
    supervise(place, place.params, wait(place, "traces.parquet"), place.at("sft"))
    place.pack("sft", "sft", "sft.seconds.jsonl")


def wait(place: Place, name: str) -> Path:
    """Returns a file that another step writes, once it is there, or its time is nearly up."""
    started = time.monotonic()
    while not place.at(name).is_file() and time.monotonic() < place.deadline - TO_WRITE:
        time.sleep(0.2)
    place.say(waited=round(time.monotonic() - started, 1))
    return place.at(name)


def supervise(
    place: Place, params: Params, file: Path, out: Path, deadline: float | None = None
) -> None:
    seconds = out.with_name(f"{out.name}.seconds.jsonl")
    with follow(place, out.with_name(f"{out.name}.work") / "seconds.jsonl", seconds, every=20):
        train_sft(params, METHOD, file, place.tokenizer, out, deadline=deadline or place.deadline)
    lines = [json.loads(line) for line in seconds.open()][1:]
    means = {name: fmean(line[name] for line in lines) for name in ("tokens_per_second", "peak_share")
             if lines and name in lines[0]}  # fmt: skip
    place.say(memory_gb=memory(), **read_json(out / "metrics.json") | means)


def evaluation(place: Place) -> None:
    """Greedy accuracy on test problems, condition after condition, with its 95 % interval."""
    phase, most = place.work.step.phase, place.params.grammar.max_children
    checkpoint = place.at("rl") if phase == "rl" else place.newest("sft")
    params = changed(held(place.params), eval={"problems": min(500, place.params.eval.problems)})
    for condition in [most, 10, None] if phase == "sft" else [most, 10]:
        started, out = time.monotonic(), place.at(f"{phase}-{condition}.parquet")
        sweep = Sweep(models=[METHOD], stages=[phase], conditions=[condition], temperatures=[0.0])
        evaluate(changed(params, eval={"sweeps": {"one": sweep}}), METHOD, phase,
                 place.problems / "test.parquet", checkpoint, out)  # fmt: skip
        rows, took = pq.read_table(out), round(time.monotonic() - started, 1)
        solved = interval(rows["strict"].to_numpy(), 2000, 0)
        place.say(model=str(checkpoint), condition=condition, problems=len(rows), accuracy=solved, took=took,
                  **{name: rows[name].to_numpy().mean() for name in MEANS})  # fmt: skip
        place.pack("evaluations", *(path.name for path in sorted(place.work.work.glob("*-*.parquet"))))


@contextmanager
def follow(place: Place, path: Path, final: Path, every: int = 1) -> Iterator[None]:
    """Says each `every`-th of the JSON lines that are appended to a file, which ends where `final` says."""
    over, read = threading.Event(), 0

    def look(path: Path) -> None:
        nonlocal read
        for line in path.read_text().splitlines()[read:] if path.is_file() else []:
            read += 1
            if read % every == 0:
                place.say(**json.loads(line))

    def watch() -> None:
        while not over.wait(0.2):
            look(path)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    look(final)


def dense(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None,
    scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """In place of flex attention: one call for a row, under a mask of all pairs of positions."""
    positions = kwargs["position_ids"]
    threads, at = (positions == 0).cumsum(1), torch.arange(positions.shape[1], device=positions.device)
    seen = (threads[:, :, None] == threads[:, None]) & (at[:, None] >= at)
    output = scaled_dot_product_attention(
        query.to(value.dtype), key.to(value.dtype), value, seen[:, None], scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip
    return output.transpose(1, 2), None


STEPS: dict[str, Callable[[Place], None]] = {
    "check": check, "traces": traces, "tests": tests, "try_rl": try_rl, "decode": decode, "rates": rates,
    "sft": sft, "evaluate": evaluation, "rl": rl,
}  # fmt: skip
