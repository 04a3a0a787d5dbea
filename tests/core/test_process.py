"""Workers and their owners, as real processes that are really killed."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from apr.core.files import atomic_path, write_text
from apr.core.process import HOST, OWNER, RUNS, SILENT, alive, identity, runs, workers_of
from tests.conftest import ROOT

WAIT = """
import sys, time
from apr.core.process import end_with
end_with(sys.argv[1])
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start():
    """Starts a process; all of them are ended with the test."""
    started = []

    def popen(*command, **environment):
        started.append(subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE))
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.wait()


def test_an_identity_is_that_of_one_process(start):
    process = start("sleep", "60")
    name = identity(process.pid)
    assert alive(name) and alive(identity())
    assert not alive(name + "1"), "the same number, another start"
    process.kill()
    time.sleep(0.2)
    assert psutil.pid_exists(process.pid) and not alive(name), "a zombie"
    process.wait()
    assert not alive(name)


def test_a_verb_ends_with_the_process_it_works_for(start):
    owner = start("sleep", "60")
    worker = start(sys.executable, "-c", WAIT, identity(owner.pid))
    assert worker.stdout.readline() == b"ready\n" and worker.poll() is None
    time.sleep(0.7)
    assert worker.poll() is None
    owner.kill()
    assert worker.wait(timeout=5) == 1


def test_a_run_on_another_machine_is_known_by_its_file(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = identity().replace(HOST, "elsewhere")
    assert not alive(run), "although a process here has its number"
    write_text(RUNS / run, "")
    assert alive(run)
    worker = start(sys.executable, "-c", WAIT, run)
    assert worker.stdout.readline() == b"ready\n"
    time.sleep(0.7)
    assert worker.poll() is None
    (RUNS / run).unlink()
    assert worker.wait(timeout=5) == 1


def test_a_run_on_another_machine_that_is_silent_is_dead(start, tmp_path, monkeypatch):
    """As after a kill in a container, whose name is new each time."""
    monkeypatch.chdir(tmp_path)
    run = identity().replace(HOST, "elsewhere")
    write_text(RUNS / run, "")
    worker = start(sys.executable, "-c", WAIT, run)
    assert worker.stdout.readline() == b"ready\n" and alive(run)
    os.utime(RUNS / run, (time.time() - SILENT - 1,) * 2)
    assert not alive(run) and worker.wait(timeout=5) == 1


ANNOUNCE = """
import sys, time
from apr.core import process
process.TOUCHED = 0.1
print(process.announce(), flush=True)
time.sleep(60)
"""


def test_a_run_says_again_and_again_that_it_is_alive(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RUNS.mkdir(parents=True)
    for litter in (".DS_Store", ".nfs0000000000a1b2", "a:b:c", "host:1", "host:1:2.0.partial"):
        (RUNS / litter).touch()
    worker = start(sys.executable, "-c", ANNOUNCE, PYTHONPATH=str(ROOT))
    name = worker.stdout.readline().decode().strip()
    assert runs() == [name], "and no other file is one"
    os.utime(RUNS / name, (0, 0))
    time.sleep(0.5)
    assert (RUNS / name).stat().st_mtime > 0
    worker.terminate()
    worker.wait()


def test_workers_are_found_by_whom_they_work_for(start):
    owner, other = identity(), "1:2.0"
    worker = start("sleep", "60", **{OWNER: owner})
    start("sleep", "60", **{OWNER: other})
    assert [process.pid for process in workers_of(owner)] == [worker.pid]


def test_what_a_killed_process_left_of_a_file_is_removed(start, tmp_path):
    dead = start("true")
    dead.wait()
    living = start("sleep", "60")
    left = tmp_path / f".file[1].partial-{dead.pid}"
    kept = tmp_path / f".file[1].partial-{living.pid}"
    other = tmp_path / f".other.partial-{dead.pid}"
    for path in (left, kept, other):
        path.write_text("half")
    write_text(tmp_path / "file[1]", "whole")
    assert not left.exists() and kept.exists() and other.exists()
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file[1]") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "file[1]").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {"file[1]", kept.name, other.name}
