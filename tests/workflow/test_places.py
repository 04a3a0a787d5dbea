"""Where a run may take place: folders of any name, without git, with data elsewhere. What is seen of it."""

import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apr.core.errors import AprError
from apr.core.files import write_json
from apr.pipeline import dvc
from apr.pipeline.plan import Plan
from tests.conftest import BIN, ROOT, Laboratory, new_laboratory
from workflow import watch
from workflow.watch import Watch

TOKENIZER = ("python", "-m", "snakemake", "--cores", "1", "--", "data/tokenizer/recipe.json")


@pytest.mark.parametrize("name", ["{a} \"b\" $HOME `c` %s", "user's Größe (x) [1]*;&"])
def test_a_folder_may_have_any_name(tmp_path, name):
    laboratory = new_laboratory(tmp_path / name)
    said = laboratory.run(*TOKENIZER)
    assert (laboratory.path / "data/tokenizer/recipe.json").is_file() and "Traceback" not in said
    assert not laboratory.planned_jobs("--", "data/tokenizer/recipe.json")
    if "{" in name:
        assert "apr: this run will not be recorded in DVC: DVC does not work where" in said
    else:
        assert "tokenizer:\n" in (laboratory.path / "dvc.lock").read_text()
        assert "didn't change, skipping" in laboratory.run("dvc", "repro", "tokenizer")


@pytest.mark.parametrize("name", ["a\nb", "a:b"])
def test_but_what_no_path_can_hold_is_refused_in_one_line(tmp_path, name):
    laboratory = Laboratory(shutil.copytree(ROOT, tmp_path / name, ignore=lambda folder, names: {
        other for other in names if folder == str(ROOT) and other not in (
            "apr", "workflow", "Snakefile", "profiles", "params.yaml", "presets")}))  # fmt: skip
    said = laboratory.run("python", "-m", "snakemake", "-n", fails=True).splitlines()
    refusal = "the directory's name is not allowed; allowed: one without ':' and line breaks"
    assert said[-1] == f"apr: error: {str(laboratory.path)!r}: {refusal}"


def test_without_git_a_run_ends_well_and_says_that_it_is_not_recorded(tmp_path):
    laboratory = new_laboratory(tmp_path / "exported")
    shutil.rmtree(laboratory.path / ".git")
    said = laboratory.run(*TOKENIZER)
    assert "apr: this run will not be recorded in DVC: this is not a git repository with DVC\n" in said
    assert "ERROR" not in said and not (laboratory.path / "dvc.lock").exists()


def test_with_data_elsewhere_a_run_ends_well_and_says_that_it_is_not_recorded(tmp_path):
    laboratory, there = new_laboratory(tmp_path / "here"), tmp_path / "there"
    shutil.move(laboratory.path / "data", there)
    (laboratory.path / "data").symlink_to(there)
    said = laboratory.run(*TOKENIZER)
    assert f"apr: this run will not be recorded in DVC: data is elsewhere, at {there}\n" in said
    assert (there / "tokenizer/recipe.json").is_file() and not laboratory.planned_jobs(*TOKENIZER[5:])
    assert not (laboratory.path / "dvc.lock").exists()


HOLD = """
import sys, time
from dvc.repo import Repo
with Repo().lock:
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def test_a_lock_of_dvc_is_waited_for(made, monkeypatch):
    monkeypatch.chdir(made.path)
    for seconds, bound in ((30, 0.0), (4, 60.0)):  # DVC itself waits for three seconds
        holder = subprocess.Popen([sys.executable, "-c", HOLD, str(seconds)], stdout=subprocess.PIPE)
        assert holder.stdout.readline() == b"held\n"
        monkeypatch.setattr(dvc, "LOCKED", bound)
        try:
            if not bound:
                with pytest.raises(AprError, match="^not recorded in DVC, .*: Unable to acquire lock[^\n]*$"):
                    dvc.commit(Plan())
            else:
                dvc.commit(Plan())
                assert holder.poll() == 0, "only when the other had ended"
        finally:
            holder.kill()
            holder.wait()


def test_a_checkout_has_the_same_bytes_everywhere(bare, tmp_path):
    windows = ("-c", "core.autocrlf=true", "-c", "core.eol=crlf")
    bare.run("git", *windows, "clone", "-q", *windows, ".", str(tmp_path / "clone"))
    for path in ("apr/core/params.py", "params.yaml", "Snakefile", "dvc.yaml"):
        assert (tmp_path / "clone" / path).read_bytes() == (bare.path / path).read_bytes()


def test_what_runs_how_far_and_how_long_still(tmp_path):
    plan = Plan("smoke", ROOT, root=f"{tmp_path}/")
    logs = tmp_path / "logs"
    (logs / "sft").mkdir(parents=True)
    (logs / "sft/apr.tsv").write_text("s\tmax_rss\n100.0\t50.0\n")
    (logs / "sft/apr.log").write_text("of an earlier run")
    view = Watch(plan, ["problems", "sft/apr"], cores=2)
    view.look()
    assert view.lines() == ["0 of 2 jobs in 0:00, more than 1:40 still"], "one was never measured"
    (logs / "problems.log").write_text("problems: 10/100 ETA 9s\nproblems: 20/100 ETA 8s\n\n")
    view.look()
    assert view.lines() == ["0 of 2 jobs in 0:00, about 1:40 still", "problems: problems: 20/100 ETA 8s"]
    (logs / "problems.log").write_text("problems: 20/100 ETA 300s")
    assert view.left() == (300.0, True), "as it says itself"
    time.sleep(0.01)
    (tmp_path / "data/problems").mkdir(parents=True)
    Path(plan.jobs["problems"].seal).touch()
    os.utime(logs / "sft/apr.log")
    view.look()
    assert view.lines() == ["1 of 2 jobs in 0:00, about 1:40 still", "sft/apr: of an earlier run"]
    (logs / "problems.tsv").write_text("s\tmax_rss\n10.0\t50.0\n")
    write_json(tmp_path / "results/run.json", {
        "jobs": {"problems": {"seconds": 60.0}, "sft/sos": {"seconds": 50.0}},
    })  # fmt: skip
    view = Watch(plan, ["problems", "sft/apr", "sft/sos"], cores=2)
    assert view.left() == (100.0, True), "the slowest; the newest seconds of each, here or recorded"
    view._begun["sft/sos"] = 0.0
    view._ended["sft/sos"] = 160.0
    assert view.left() == (pytest.approx(100.0 * (60 + 160) / (60 + 50)), True), "this run is slower"
    assert [watch.clock(seconds) for seconds in (5, 61, 7260)] == ["0:05", "1:01", "2 h 01 min"]


def test_a_terminal_shows_it_live(tmp_path):
    laboratory, said = new_laboratory(tmp_path / "laboratory"), b""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(laboratory.path)
        os.execve(BIN / "python", TOKENIZER, laboratory.environment | {"TERM": "xterm"})
    while True:
        try:
            said += os.read(terminal, 4096)
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = re.sub(r"\x1b\[[0-9;?]*\w", "", said.decode())
    assert re.search(r"0 of 1 jobs in 0:0\d", text) and "apr: 1 of 1 jobs in 0:" in text
    assert "rule tokenizer" not in text and "tokenizer: starting" in text
