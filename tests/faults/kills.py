"""Kills at random moments, after each of which one command mends everything.

    python -m tests.faults.kills --times 20 --seed 0

runs the smoke scale once undisturbed in a copy of the working tree. Then, over and over, it removes the
artefacts of a stage, starts the run, and in that stage kills (SIGKILL) a worker, snakemake or dvc. After that
nothing may go on writing. What `make run` runs (`snakemake`, then `apr commit`, as DVC may have been killed
before it recorded what was made) must finish, leave no lock and no half-written file, and give the hashes of
the undisturbed run: of all Parquet files, checkpoints, tokenizers and CSVs but those with measured seconds.
"""

import argparse
import csv
import hashlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psutil

from apr.core.recipe import Job
from apr.pipeline.plan import Plan
from apr.pipeline.stages import STAGES
from tests.conftest import Laboratory, new_laboratory

COMMANDS = {"worker": "snakemake --cores 2", "snakemake": "snakemake --cores 2", "dvc": "dvc repro"}
"""What is started, by what is killed."""
HASHED = ("*.parquet", "*.safetensors", "tokenizer.json", "*.csv")
WITH_SECONDS = {"fig6.csv", "devices.csv", "claims.csv"}


def hashes(root: Path) -> dict[str, str]:
    folders = root / "data", root / "results"
    found = [path for folder in folders for kind in HASHED for path in folder.rglob(kind)]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in found if path.name not in WITH_SECONDS}  # fmt: skip


def running(root: Path) -> list[psutil.Process]:
    """The processes that work in `root`, oldest first."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == root and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


def first(processes: list[psutil.Process], *words: str) -> psutil.Process | None:
    """The first whose command line is of `words`, behind its interpreter or not."""
    for process in processes:
        try:
            command = [Path(part).name for part in process.cmdline()]
        except psutil.Error:
            continue
        if command[: len(words)] == list(words) or command[1 : 1 + len(words)] == list(words):
            return process
    return None


def worker(processes: list[psutil.Process], stage: str) -> psutil.Process | None:
    """The first that makes an artefact of a stage."""
    for process in processes:
        with suppress(psutil.Error):
            if f" -m apr run {stage}" in " ".join(process.cmdline()) and process.name() not in ("sh", "bash"):
                return process
    return None


def seconds_of(root: Path, stage: str) -> float:
    """How long the shortest job of a stage took in the undisturbed run."""
    logs = root / "logs"
    files = [path for path in (logs / f"{stage}.tsv", *(logs / stage).rglob("*.tsv")) if path.is_file()]
    rows = [row for path in files for row in csv.DictReader(path.read_text().splitlines(), delimiter="\t")]
    return min(float(row["s"]) for row in rows)


def kill_once(laboratory: Laboratory, jobs: Sequence[Job], target: str, delay: float) -> bool:
    """Removes what some jobs of one stage have made, and kills while a run makes it again.

    Whether something was killed; it may have ended before its time was up.
    """
    root, stage = laboratory.path, jobs[0].stage
    for job in jobs:
        for path in (*job.outputs, job.seal):
            shutil.rmtree(path, ignore_errors=True)
            Path(path).unlink(missing_ok=True)
    started = subprocess.Popen(COMMANDS[target].split(), cwd=root, env=laboratory.environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while started.poll() is None and worker(running(root), stage) is None:
        time.sleep(0.02)
    time.sleep(delay)
    process = worker(running(root), stage) if target == "worker" else first(running(root), target)
    if process is not None:
        process.send_signal(signal.SIGKILL)
    started.wait()
    if process is not None and target != "worker":
        time.sleep(2.0)
        left = running(root)
        assert not left, f"still at work: {[' '.join(process.cmdline()) for process in left]}"
    return process is not None


def check(laboratory: Laboratory, expected: dict[str, str]) -> None:
    """The one command, and what it must leave."""
    root = laboratory.path
    laboratory.run("snakemake", "--cores", "2")
    laboratory.run("python", "-m", "apr", "commit")
    found = hashes(root)
    differing = {path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)}
    assert not differing, f"other files than in the undisturbed run: {sorted(differing)}"
    left = [path for pattern in (".*.partial-*", "*.work") for path in root.rglob(pattern)]
    left += list((root / ".snakemake/locks").glob("*")) + list((root / ".snakemake/apr-runs").glob("*"))
    assert not left, f"left behind: {left}"
    assert (laboratory.planned(), laboratory.changed_in_dvc()) == (set(), set())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="of the kills of this seed, those not to repeat")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        laboratory = new_laboratory(Path(folder).resolve())
        laboratory.run("snakemake", "--cores", "2")
        laboratory.run("git", "add", "-A")
        laboratory.run("git", "commit", "-q", "-m", "results")
        plan, expected = Plan("default", laboratory.path), hashes(laboratory.path)
        print(f"undisturbed: {len(expected)} files", flush=True)
        longest = {stage: seconds_of(laboratory.path, stage) for stage in STAGES}

        def draws():
            rng, number = random.Random(args.seed), 0
            while True:  # every stage in turn, each target as often
                stages = list(STAGES)
                rng.shuffle(stages)
                for stage in stages:
                    yield stage, list(COMMANDS)[number % len(COMMANDS)], rng.random()
                    number += 1

        done = args.skip
        for stage, target, share in islice(draws(), args.skip, None):
            if done == args.times:
                break
            started = time.monotonic()
            jobs = [job for job in plan.jobs.values() if job.stage == stage]
            hit = kill_once(laboratory, jobs, target, share * longest[stage])
            check(laboratory, expected)
            done += hit
            said = f"{done:3d} killed {target}" if hit else f"    {target} had ended"
            print(f"{said} in {stage} after {share * longest[stage]:.1f} s: all mended "
                  f"({time.monotonic() - started:.0f} s)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
