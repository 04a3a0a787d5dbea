"""The Slurm profile: what it plans, and its jobs, really run by Snakemake's executor through `slurm.py`."""

import re
import signal
import subprocess
import time

import pytest

from apr.core.process import RUNS
from apr.pipeline.plan import Plan
from apr.pipeline.stages import STAGES
from tests.conftest import new_laboratory
from tests.faults.kills import running, worker
from tests.workflow import slurm

PROFILE = ("--profile", "workflow/profiles/slurm", "--cores", "16")
GPU_RULES = {stage.name for stage in STAGES.values() if stage.gpu}
GROUPS = {"problems": "data", "tokenizer": "data", "traces": "data", "teacher": "data",
          "headline": "headline", "figures": "results",
          "claims": "results", "checks": "results", "demo": "results"}  # fmt: skip


def test_the_profile_plans_the_same_jobs_with_their_resources(bare):
    plain, planned = bare.plan(), bare.plan(*PROFILE)
    assert set(planned) == set(plain)
    for name, job in planned.items():
        rule = name.split("/")[0]
        assert rule in GPU_RULES ^ GROUPS.keys() and job.get("group") == GROUPS.get(rule), name
        resources = dict(re.findall(r"(\w+)=([^,]*)", job["resources"]))
        assert (resources.get("gpu") == "1") == (rule in GPU_RULES), name
        assert int(resources["mem_mb"]) >= 4000 and int(resources["runtime"]) >= 60, name
        if rule in GPU_RULES:
            assert resources["cpus_per_task"] == "4" and "group" not in job, name
    assert planned["traces/apr"]["threads"] == "8"
    assert all("group" not in job and "cpus_per_task" not in job["resources"] for job in plain.values())


@pytest.fixture
def laboratory(tmp_path):
    laboratory = new_laboratory(tmp_path / "laboratory")
    laboratory.environment["PATH"] = f"{slurm.install(tmp_path / 'slurm')}:{laboratory.environment['PATH']}"
    yield laboratory
    laboratory.kill_all()


def test_jobs_are_submitted_and_end_with_the_run_that_submitted_them(laboratory, tmp_path):
    root = laboratory.path
    quick = ("--seconds-between-status-checks", "1", "--slurm-init-seconds-before-status-checks", "1")
    command = ("snakemake", *PROFILE, *quick, "--")
    models = [f"data/models/sft/{method}/recipe.json" for method in ("sos", "apr")]
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen((*command, *models), cwd=root, env=laboratory.environment,
                               stdout=said, stderr=said)  # fmt: skip
    while len(slurm.submissions(tmp_path / "slurm")) < 3 or not worker(running(root), "sft"):
        assert run.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.1)
    assert not any((root / model).exists() for model in models), "two GPU jobs at the same time"
    run.send_signal(signal.SIGKILL)
    run.wait()
    time.sleep(2.0)
    assert not running(root)

    laboratory.run(*command, "data/traces/sos_plus.parquet")
    assert not list((root / RUNS).iterdir()) and not list((root / ".snakemake/locks").glob("*"))
    made = {"problems", "tokenizer", "traces/sos", "traces/apr", "traces/sos_plus"}
    assert laboratory.planned_jobs() == set(Plan("default", root).jobs) - made
    data, *sft, traces = slurm.submissions(tmp_path / "slurm")
    assert data["comment"] == "rule_data_problems_tokenizer_traces" and "gpus" not in data
    assert (data["cpus_per_task"], data["mem"], data["t"]) == ("16", "16000", "300")
    assert {job["comment"] for job in sft} == {"rule_sft_wildcards_sos", "rule_sft_wildcards_apr"}
    for job in sft:
        assert (job["gpus"], job["cpus_per_task"], job["mem"], job["t"]) == ("1", "4", "32000", "1440")
    assert (traces["cpus_per_task"], traces["mem"], traces["t"]) == ("8", "8000", "240")
