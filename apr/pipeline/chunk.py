"""A run in chunks: each goes on from what the one before has packed, on whatever machine, without a network.

Carried is every artefact that is what its seal says, and the newest trainer state of every training under
way. Left out are problems, tokenizer and traces: they are quick to make, and the same bytes on every machine,
so that what was made from them is still fresh. A model is carried to the end, as the last jobs read them all.
"""

import argparse
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa

from apr.core.arguments import typed
from apr.core.errors import AprError, DataError
from apr.core.files import atomic_path, read_json, trainer_states, write_json
from apr.core.hashes import hash_tree
from apr.core.process import EVERY, OWNER, identity, workers_of
from apr.core.recipe import Reason, why_stale
from apr.core.settings import PositiveReal
from apr.pipeline.plan import DEFAULT_SCALE, Plan

MB = 10**6
PART_BYTES = 16 * MB
"""Largest file of what is carried."""
MANIFEST = "carry.json"
"""Scale and hashes of the files beside it."""
MADE_AGAIN = {"problems", "tokenizer", "traces"}
"""Stages whose artefacts are not carried."""
GRACE = 20.0
"""Seconds that a run has to end after it was told to."""
LARGEST = 5
"""Items that an error names."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--minutes", required=True, type=typed(PositiveReal),
                      help="how long to work, unpacking included; packing takes some seconds more")
    verb.add_argument("--carry", required=True, type=Path, metavar="DIR",
                      help="directory of what one chunk leaves for the next; not there before the first")
    verb.add_argument("--most-mb", type=typed(PositiveReal), default=64.0,
                      help="fail if more has to be carried (default: 64 MB of a million bytes)")  # fmt: skip
    verb.set_defaults(run=chunk)


def chunk(args: argparse.Namespace) -> None:
    """Run a scale for some minutes, from what an earlier chunk has packed, and pack what the next one needs.

    SIGTERM ends it early and packs too. Raises `DataError` if what was packed is incomplete, and `AprError`
    if a job fails (what is done is packed), if what is made again differs, or if too much has to be carried.
    """
    deadline, told = time.monotonic() + 60 * args.minutes, list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        unpack(args.carry, args.scale)
        failed = work(args.scale, lambda: bool(told) or time.monotonic() >= deadline)
        plan = Plan(args.scale)
        done = len(plan.jobs) - len(plan.stale)
        print(f"{done} of {len(plan.jobs)} artefacts are made; left: {', '.join(plan.stale) or 'nothing'}")
        files = carried_files(plan)
        packed = pack(args.carry, args.scale, files)
    finally:
        signal.signal(signal.SIGTERM, before)
    sizes = Counter[str]()
    for path, item in files.items():
        sizes[item] += path.stat().st_size
    largest = ", ".join(f"{item} {size / MB:.1f} MB" for item, size in sizes.most_common(LARGEST))
    total = sum(packed)
    print(f"to carry: {args.carry}: {total / MB:.1f} MB in {len(packed)} files; before compression: "
          f"{largest or 'nothing'}")
    if total > args.most_mb * MB:
        raise AprError(f"{args.carry}: {total / MB:.1f} MB to carry, allowed: {args.most_mb:g}; before "
                       f"compression: {largest}")
    if failed:
        raise AprError("a job failed (see above); what was done is packed")


def work(scale: str, over: Callable[[], bool]) -> bool:
    """Runs `snakemake` until everything is made or `over()`; whether it failed by itself."""
    plan = Plan(scale)
    carried = [name for name in plan.jobs if is_carried(plan, name)]
    read = {other for name in carried for other in plan.jobs[name].upstream}
    again = [name for name in plan.stale if name in read and plan.jobs[name].stage in MADE_AGAIN]
    items = dict.fromkeys(carried_files(plan).values())
    names, first = (", ".join(found) or "nothing" for found in (items, again))
    print(f"found: {names}; to be made again first: {first}")
    for name in plan.jobs:
        if (reason := own_reason(plan, name)) and Path(plan.jobs[name].seal).is_file():
            print(f"found, but not wanted as it is: {name}: {reason}")
    sys.stdout.flush()
    if again:
        code = snakemake(scale, over, [plan.jobs[name].seal for name in again])
        if code != 0:
            return code is not None
        for name in carried:
            reason = why_stale(plan.jobs[name])
            if reason and not set(again).isdisjoint(plan.jobs[name].upstream):
                raise AprError(f"{name}: {reason}, and is not what it was on the machine before (same "
                               "versions, same kind of processor?)")
    return snakemake(scale, over) not in (0, None)


def snakemake(scale: str, over: Callable[[], bool], targets: Sequence[str] = ()) -> int | None:
    """The exit code of a run of all jobs, or of those of `targets`; None if it was ended, being `over()`."""
    config = [] if scale == DEFAULT_SCALE else ["--config", f"scale={scale}"]
    command = [sys.executable, "-m", "snakemake", "--cores", "all", *config, "--", *targets]
    # Ends with this process, even if that is killed.
    run = subprocess.Popen(command, start_new_session=True, env=os.environ | {OWNER: identity()})
    owner = identity(run.pid)
    while run.poll() is None and not over():
        time.sleep(EVERY)
    if run.poll() is not None:
        return run.returncode
    print("time is up: the jobs are ended, and reported as failed", flush=True)
    os.killpg(run.pid, signal.SIGTERM)
    try:
        run.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    left = list(workers_of(owner))
    for process in left:
        process.kill()
    psutil.wait_procs(left)
    return None


def own_reason(plan: Plan, name: str) -> Reason | None:
    """As `why_stale`, whatever has become of what the artefact was made from."""
    return why_stale(replace(plan.jobs[name], upstream={}))


def is_carried(plan: Plan, name: str) -> bool:
    return plan.jobs[name].stage not in MADE_AGAIN and own_reason(plan, name) is None


def carried_files(plan: Plan) -> dict[Path, str]:
    """What the next chunk needs, and which item each file belongs to."""
    files: dict[Path, str] = {}

    def add(path: Path, item: str) -> None:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        files.update({file: item for file in inside if file.is_file()})

    for name, job in plan.jobs.items():
        folder = Path(f"{job.outputs[0]}.work")
        if is_carried(plan, name):
            for output in (*job.outputs, job.seal, f"{plan.root}logs/{name}.tsv"):
                add(Path(output), name)
        elif states := trainer_states(folder):
            for path in folder.iterdir():
                if path == states[-1] or not path.name.startswith("checkpoint-"):
                    add(path, f"{name} ({states[-1].name})")
    add(Path(f"{plan.root}results/run.json"), "run.json")
    return files


class _Parts(io.RawIOBase):
    """A file that is written as several in `folder`, each of at most `PART_BYTES`."""

    def __init__(self, folder: Path):
        self.folder, self.sizes = folder, list[int]()

    def writable(self) -> bool:
        return True

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        for start, stop in self._cut(len(view)):
            with (self.folder / f"part-{len(self.sizes) - 1:03d}").open("ab") as file:
                file.write(view[start:stop])
        return len(view)

    def _cut(self, length: int) -> Iterator[tuple[int, int]]:
        start = 0
        while start < length:
            if not self.sizes or self.sizes[-1] == PART_BYTES:
                self.sizes.append(0)
            stop = min(length, start + PART_BYTES - self.sizes[-1])
            self.sizes[-1] += stop - start
            yield start, stop
            start = stop


def pack(carry: Path, scale: str, files: Iterable[Path]) -> list[int]:
    """Replaces `carry` by a tar stream of `files`, compressed and in parts; the sizes of the parts."""
    with atomic_path(carry) as partial:
        partial.mkdir()
        parts = _Parts(partial)
        with (
            pa.CompressedOutputStream(pa.PythonFile(parts, "w"), "zstd") as stream,
            tarfile.open(fileobj=stream, mode="w|") as tar,
        ):
            for path in files:
                tar.add(path)
        write_json(partial / MANIFEST, {"scale": scale, "parts": hash_tree(partial, partial)})
    return parts.sizes


def unpack(carry: Path, scale: str) -> None:
    """Puts what `pack` has written where it was; a file that is there is left as it is.

    Raises `DataError` if `carry` is of another scale, not whole, or nothing that was packed.
    """
    if not carry.exists() or carry.is_dir() and not any(carry.iterdir()):
        return
    manifest = read_json(carry / MANIFEST)
    if manifest["scale"] != scale:
        raise DataError(f"{carry}: packed by a chunk of scale {manifest['scale']!r}, not {scale!r}")
    found = {name: value for name, value in hash_tree(carry, carry).items() if name != MANIFEST}
    for name, value in manifest["parts"].items():
        if found.get(name) != value:
            raise DataError(f"{carry}/{name}: {'missing' if name not in found else 'not as it was packed'}")
    if others := sorted(found.keys() - manifest["parts"].keys()):
        raise DataError(f"{carry}/{others[0]}: not a part of what was packed")
    with (
        _Joined([carry / name for name in sorted(manifest["parts"])]) as joined,
        pa.CompressedInputStream(pa.PythonFile(joined, "r"), "zstd") as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        for member in tar:
            path = Path(member.name)
            if not member.isfile() or path.is_absolute() or ".." in path.parts:  # tarfile filters from 3.11.4
                raise DataError(f"{carry}: {path} is no file of this tree")
            if not path.exists() and (content := tar.extractfile(member)):
                with atomic_path(path) as partial, partial.open("wb") as file:
                    shutil.copyfileobj(content, file)


class _Joined(io.RawIOBase):
    """The files of `paths` read as one."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = list(paths)
        self._file = self._paths.pop(0).open("rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not (count := self._file.readinto(buffer)) and self._paths:
            self._file.close()
            self._file = self._paths.pop(0).open("rb")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
