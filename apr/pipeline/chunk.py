"""A run in chunks, on machines that are there for minutes, without Snakemake, DVC or a network.

The jobs of a scale are walked in order. Each is a fork of one process that has imported what they need, so
that none waits for PyTorch, none sees what another has left behind, and none takes others with it. What was
made, and the newest state of the training under way, is packed for the next chunk, which goes on from there;
not problems, tokenizer and traces, which are the same bytes on every machine and quick to make.
"""

import argparse
import hashlib
import io
import json
import os
import resource
import signal
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from apr.core.arguments import typed
from apr.core.errors import AprError, DataError
from apr.core.files import atomic_path, read_json, trainer_states, write_json, write_text
from apr.core.process import EVERY, OWNER, announce, end_with, workers_of
from apr.core.recipe import Job, why_stale
from apr.core.settings import PositiveReal
from apr.pipeline.plan import Plan
from apr.pipeline.record import record
from apr.pipeline.run import run

MB = 10**6
PART_BYTES = 16 * MB
"""Largest file of what is carried."""
MANIFEST = "carry.json"
"""Scale, and hashes of the files beside it."""
MADE_AGAIN = {"problems", "tokenizer", "traces"}
"""Stages whose artefacts are not carried."""
GRACE = 10.0
"""Seconds that a job has to end after it was told to."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--minutes", required=True, type=typed(PositiveReal),
                      help="how long to work, unpacking included; packing takes some seconds more")
    verb.add_argument("--carry", required=True, type=Path, metavar="DIR",
                      help="directory of what one chunk leaves for the next; not there before the first")
    verb.add_argument("--most-mb", type=typed(PositiveReal), default=64.0,
                      help="fail if more has to be carried (default: 64 MB of a million bytes)")


def chunk(args: argparse.Namespace) -> None:
    """Run a scale for some minutes, from what an earlier chunk has packed, and pack what the next one needs.

    Prints a JSON line for each job as soon as it has ended, with what it measured, and one at the end.
    SIGTERM ends it early and packs too. Raises `DataError` if what was packed is incomplete, and `AprError`
    if a job fails (all that can be is made and packed), if what is made again differs, or if too much has to
    be carried.
    """
    deadline, told, started = time.monotonic() + 60 * args.minutes, list[int](), time.time()
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        unpack(args.carry, args.scale)
        try:
            failed = walk(Plan(args.scale), lambda: bool(told) or time.monotonic() >= deadline)
        finally:
            plan = Plan(args.scale)
            if not plan.stale:
                record(plan, started)
            files = carried_files(plan)
            parts = pack(args.carry, args.scale, files)
    finally:
        signal.signal(signal.SIGTERM, before)
    sizes = Counter[str]()
    for path, item in files.items():
        sizes[item] += path.stat().st_size
    say(made=len(plan.jobs) - len(plan.stale), left=list(plan.stale), carried=list(sizes), parts=parts)
    if sum(parts) > args.most_mb * MB:
        largest = ", ".join(f"{item} {size / MB:.1f} MB" for item, size in sizes.most_common(5))
        raise AprError(f"{args.carry}: {sum(parts) / MB:.1f} MB to carry, allowed: {args.most_mb:g}; before "
                       f"compression: {largest}")
    if failed:
        raise AprError(f"{', '.join(failed)} failed; what was done is packed")


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def walk(plan: Plan, over: Callable[[], bool]) -> list[str]:
    """Makes what is stale, job after job, until `over()`; returns the jobs that failed.

    Raises `AprError` if an artefact was made from something that is not the same when it is made again here.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", OWNER: (owner := announce()),
                   "OMP_NUM_THREADS": str(plan.params.engine.torch_threads)}  # fmt: skip
    forks, fresh, failed = get_context("forkserver"), set[str](), list[str]()
    forks.set_forkserver_preload(sorted({job.function.split(":")[0] for job in plan.jobs.values()}))
    for name, job in plan.jobs.items():
        if not (reason := why_stale(job)):
            fresh.add(name)
        elif reason.kind == "remade" and plan.jobs[reason.key].stage in MADE_AGAIN:
            raise AprError(f"{name}: {reason}, and is not what it was on the machine before (same versions, "
                           "same kind of processor?)")
        elif fresh.issuperset(job.upstream) and not over():
            log, since = Path(f"{plan.root}logs/{name}.log"), time.monotonic()
            process = forks.Process(target=work, args=(plan.write_job(name), log, owner))
            process.start()
            while process.is_alive() and not over():
                process.join(EVERY)
            if stopped := process.is_alive():
                process.terminate()
                process.join(GRACE)
                for left in workers_of(owner):
                    left.kill()
            figures = {"stopped": True} if stopped else figures_of(job, log, process.exitcode)
            seconds = round(time.monotonic() - since, 1)
            say(**{"job": name, "because": str(reason)} | figures | {"seconds": seconds})
            if process.exitcode == 0:
                fresh.add(name)
            elif not stopped:
                failed.append(name)
    return failed


def work(recipe: Path, log: Path, owner: str) -> None:
    """Makes one artefact in a process of its own, which ends with `owner`; its cost goes beside the log."""
    end_with(owner)
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        run(recipe, workers=os.cpu_count() or 1)
    except AprError as error:
        sys.exit(f"apr: error: {error}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_text(log.with_suffix(".tsv"), f"s\tmax_rss\n{time.monotonic() - started:.2f}\t{memory:.2f}\n")


def figures_of(job: Job, log: Path, code: int | None) -> dict[str, Any]:
    """Returns what is known of an artefact in numbers: metrics, or accuracy and tokens at each point; what a
    job that failed said last."""
    if code != 0:
        lines = log.read_text().splitlines() if log.is_file() else []
        return {"error": lines[-1] if lines else f"exit code {code}"}
    out = Path(job.outputs[0])
    for path in (out / "metrics.json", out):
        if path.suffix == ".json" and path.is_file():
            return {key: value for key, value in read_json(path).items() if isinstance(value, int | float)}
    if out.suffix != ".parquet":
        return {}
    table = pq.read_table(out)
    if "strict" not in table.column_names:
        return {"rows": len(table)}
    points = table.append_column("accuracy", table["strict"].cast("int8")).group_by(
        ["condition_amount", "temperature", "join"]).aggregate([("accuracy", "mean"), ("total", "mean")])
    return {"rows": len(table), "points": points.to_pylist()}


def carried_files(plan: Plan) -> dict[Path, str]:
    """Returns what the next chunk needs, and which item each file belongs to: each artefact that is what its
    seal says, whatever has become of what it was made from, and each training's newest whole state."""
    files: dict[Path, str] = {}
    for name, job in plan.jobs.items():
        seconds, work = (Path(f"{job.outputs[0]}.{what}") for what in ("seconds.jsonl", "work"))
        item, found = name, [Path(path) for path in (*job.outputs, job.seal, f"{plan.root}logs/{name}.tsv")]
        if job.stage in MADE_AGAIN:
            continue
        if why_stale(replace(job, upstream={})):
            if not (states := trainer_states(work)):
                continue
            item = f"{name} ({states[-1].name})"
            found = [path for path in work.iterdir()
                     if path == states[-1] or not path.name.startswith("checkpoint-")]
        for path in (*found, seconds):
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            files |= {file: item for file in inside if file.is_file()}
    recorded = Path(f"{plan.root}results/run.json")
    return files | ({recorded: "run.json"} if recorded.is_file() else {})


def pack(carry: Path, scale: str, files: Iterable[Path]) -> list[int]:
    """Replaces `carry` by a compressed tar of `files` in parts; returns their sizes."""
    with tarfile.open(fileobj=(whole := io.BytesIO()), mode="w:gz", compresslevel=6) as tar:
        for path in files:
            tar.add(path)
    content = whole.getbuffer()
    parts = {f"part-{start // PART_BYTES:03d}": content[start : start + PART_BYTES]
             for start in range(0, len(content), PART_BYTES)}  # fmt: skip
    with atomic_path(carry) as partial:
        partial.mkdir()
        for name, part in parts.items():
            (partial / name).write_bytes(part)
        hashes = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
        write_json(partial / MANIFEST, {"scale": scale, "parts": hashes})
    return [len(part) for part in parts.values()]


def unpack(carry: Path, scale: str) -> None:
    """Puts what `pack` has written where it was; a file that is there is left as it is.

    Raises `DataError` if `carry` is of another scale, not whole, or nothing that was packed.
    """
    if not carry.exists() or carry.is_dir() and not any(carry.iterdir()):
        return
    manifest, whole = read_json(carry / MANIFEST), io.BytesIO()
    try:
        of, parts = manifest["scale"], dict(manifest["parts"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{carry / MANIFEST}: not written by a chunk") from None
    if of != scale:
        raise DataError(f"{carry}: packed by a chunk of scale {of!r}, not {scale!r}")
    if others := sorted({path.name for path in carry.iterdir()} - parts.keys() - {MANIFEST}):
        raise DataError(f"{carry}/{others[0]}: not a part of what was packed")
    for name, value in sorted(parts.items()):
        if not (carry / name).is_file():
            raise DataError(f"{carry}/{name}: missing")
        content = (carry / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != value:
            raise DataError(f"{carry}/{name}: not as it was packed")
        whole.write(content)
    whole.seek(0)
    with tarfile.open(fileobj=whole, mode="r:gz") as tar:
        for member in tar:
            path = Path(member.name)
            if not member.isfile() or path.is_absolute() or ".." in path.parts:  # tarfile filters from 3.11.4
                raise DataError(f"{carry}: {path} is no file of this tree")
            if not path.exists() and (file := tar.extractfile(member)):
                with atomic_path(path) as partial:
                    partial.write_bytes(file.read())
