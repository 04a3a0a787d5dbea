"""A laboratory: a copy of the working tree as a git repository of its own, with smoke as its params.yaml."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from apr.pipeline.plan import load_scale
from tests import forks

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
IDENTITY = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "test"), ("EMAIL", "test@example.org"))}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs `made` comes first, as it takes longest: one worker makes it, and when the others, which
    begin further on, have nothing left, there are short tests to take over."""
    items.sort(key=lambda item: "made" not in getattr(item, "fixturenames", ()))


class Laboratory:
    def __init__(self, path: Path):
        self.path = path
        self.environment = os.environ | IDENTITY | {"PATH": f"{BIN}:{os.environ['PATH']}"}
        self.environment.pop("PYTHONPATH", None)

    def run(self, *command: str, fails: bool = False, timeout: float | None = None) -> str:
        """Runs a command in the laboratory, or a fork that does as it would; its output, stderr included.

        One with a `timeout` is never a fork. When those seconds are over, all that works in the laboratory is
        killed: `subprocess.TimeoutExpired`.
        """
        program = command[2:] if command[:2] == ("python", "-m") else command
        if program[0] in forks.PROGRAMS and timeout is None:
            code, said = forks.run(*program, folder=self.path, environment=self.environment)
        else:
            code, said = self._start(command, timeout or 600)
        assert bool(code) == fails, f"{' '.join(command)}\n{said}"
        return said

    def _start(self, command: tuple[str, ...], timeout: float) -> tuple[int, str]:
        """Not through a pipe, which a process that the command has left behind would keep open."""
        with TemporaryFile("w+") as output:
            try:
                done = subprocess.run(command, cwd=self.path, env=self.environment, timeout=timeout,
                                      check=False, stdout=output, stderr=subprocess.STDOUT)  # fmt: skip
            except subprocess.TimeoutExpired as error:
                self.kill_all()
                output.seek(0)
                error.output = output.read()
                raise
            output.seek(0)
            return done.returncode, output.read()

    def kill_all(self) -> None:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(self.path):
                    process.kill()

    def planned(self, *options: str) -> set[str]:
        """The stages of which `snakemake -n` would run a job."""
        return {name.split("/")[0] for name in self.planned_jobs(*options)}

    def planned_jobs(self, *options: str) -> set[str]:
        """The jobs that `snakemake -n` would run, as `apr.pipeline.plan` names them."""
        return set(self.plan(*options))

    def plan(self, *options: str) -> dict[str, dict[str, str]]:
        """Per job that `snakemake -n` would run, what it says of it: `threads`, `resources`, `group`, ..."""
        output = self.run("snakemake", "-n", "--quiet", "reason", *options)
        jobs: dict[str, dict[str, str]] = {}
        found, group = [], ""
        for line in output.splitlines():
            if heading := re.fullmatch(r"(?:\[.*\] )?Group job (\w+) .*", line):
                group = heading[1]
            elif rule := re.fullmatch(r"( *)(?:local)?rule (\w+):", line):
                found.append({"rule": rule[2]} | ({"group": group} if rule[1] else {}))
            elif (field := re.fullmatch(r" +(\w+): (.*)", line)) and found:
                found[-1][field[1]] = field[2]
        for job in found:
            values = dict(pair.split("=") for pair in job.get("wildcards", "").split(", ") if pair)
            names = [values[name] for name in ("stage", "method", "policy", "model") if name in values]
            jobs["/".join([job["rule"], *names])] = job
        return {name: job for name, job in jobs.items() if not name.startswith("all")}

    def changed_in_dvc(self) -> set[str]:
        """The stages that `dvc status` reports, and those downstream of them."""
        changed = set(json.loads(self.run("dvc", "status", "--json").splitlines()[-1]))  # after warnings
        while more := {below for above, below in self.edges if above in changed} - changed:
            changed |= more
        return changed

    @cached_property
    def edges(self) -> list[tuple[str, str]]:
        """Pairs of stages in DVC's graph, upstream first."""
        lines = self.run("dvc", "dag", "--dot").replace('"', "").splitlines()
        return [tuple(part.strip(" ;\t") for part in line.split("->")) for line in lines if "->" in line]

    def set(self, key: str, value: Any) -> Any:
        """Sets a dotted key of params.yaml; the value it had."""
        yaml, path = YAML(), self.path / "params.yaml"
        root = values = yaml.load(path.read_text())
        *sections, last = key.split(".")
        for section in sections:
            values = values[section]
        before, values[last] = values[last], value
        with path.open("w") as file:
            yaml.dump(root, file)
        return before


def working_tree(root: Path) -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split("\0") if name and (root / name).is_file()]


def new_laboratory(path: Path) -> Laboratory:
    for name in working_tree(ROOT):
        if not name.startswith(("results/", "tests/", "dvc.lock")):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, path / name)
    with (path / "params.yaml").open("w") as file:
        YAML().dump(load_scale("smoke", ROOT).model_dump(mode="json"), file)
    laboratory = Laboratory(path)
    laboratory.run("git", "init", "-q")
    laboratory.run("git", "add", "-A")
    laboratory.run("git", "commit", "-q", "-m", "start")
    return laboratory


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """Nothing is made yet."""
    return new_laboratory(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """Everything is made, once for all tests, by forks of one process; each test puts back what it edits.

    Each of several workers (`-n 3`) has a copy of what the first that needs it has made.
    """
    base = tmp_path_factory.getbasetemp()
    original = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "original"
    with Path(f"{original}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = Path(f"{original}.done")
        if not done.exists():
            laboratory = new_laboratory(original)
            laboratory.run("python", "-m", "apr", "chunk", "--minutes=60", f"--carry={original}.carry")
            laboratory.run("python", "-m", "apr", "commit")
            laboratory.run("git", "add", "-A")
            laboratory.run("git", "commit", "-q", "-m", "results")
            done.touch()
    return Laboratory(shutil.copytree(original, base / "made", symlinks=True))
