"""Every command of the documents is executed: here, by another test, or it is said what it needs."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import Laboratory

ROOT = Path(__file__).parents[2]
PROGRAMS = ("make", "snakemake", "dvc", "apr", "python", "accelerate", "vllm", "kubectl", "hf", "git")
ABLATION = "docs/ablation.md"

HERE = [
    "snakemake --cores 2", "snakemake --cores 2 demo", "snakemake --cores 2 headline", "snakemake -n",
    "dvc repro", "dvc exp show", "make status", "python -m apr --help",
]  # fmt: skip
"""Run below, where everything has been made at the smoke scale."""
PIPELINE = "tests/workflow/test_pipeline.py"
EXPERIMENTS = f"{PIPELINE}: def test_experiments_are_told_apart_and_applied"
PULLED = f"{PIPELINE}: def test_a_clone_that_pulls_has_nothing_to_do"
CLUSTERS = "tests/workflow/test_clusters.py: def test_jobs_are_submitted_and_end_with_the_run"
CLAIMS = "tests/results/test_claims.py: def test_the_table_and_the_readme"
CHUNKS = "tests/workflow/test_chunks.py: def test_chunks_on_fresh_machines_make_what_one_run_makes"
PROCESSES = "tests/processes/test_two_processes.py: def test_two_processes_have_the_losses_of_one"
EXAMPLES = "tests/workflow/test_examples.py: def test_an_example_runs_as_it_says"
VERIFIERS = "tests/verifiers/test_verifiers.py: def test_it_is_read_without_this_package"
COST = "tests/pipeline/test_cost.py: def test_the_paper_scale_is_the_papers"
ELSEWHERE = {
    "make run": ".ci/run: snakemake --cores all", "make test": ".ci/run: make test",
    "make .venv/ready": ".ci/run: make lint", "make lint": ".ci/run: make lint", "python examples/": EXAMPLES,
    "python tests/verifiers/": VERIFIERS,
    "make claims": CLAIMS, "python -m apr claims": CLAIMS,
    "make plan SCALE=paper": COST, "python -m apr plan --scale": COST, "python -m apr chunk": CHUNKS,
    "dvc exp run": EXPERIMENTS, "dvc exp show --only-changed": EXPERIMENTS,
    "snakemake --profile": CLUSTERS, "dvc remote": PULLED, "dvc push": PULLED,
    "accelerate launch": PROCESSES,
    "apr serve": "tests/engine/test_remote.py: def test_greedy_over_http_is_greedy_at_home",
    "apr demo": "tests/cli/test_publish_verbs.py: def test_without_a_model_those_of_the_project_are_taken",
    "python -m apr publish": "tests/results/test_publish.py: def folders",
    "apr solve": "tests/cli/test_solve.py: def test_a_problem_is_decoded_and_judged",
}
"""Beginnings of commands, and what runs them with other values."""
NEEDS = {
    "make run SCALE=seed1": "an hour", "make run SCALE=seed2": "an hour",
    "snakemake --cores 2 --config scale=laboratory-seed": "an hour",
    "python -m workflow.gpu.gather": "a network", "python -m workflow.gpu.quarter": "a GPU",
    "make real": "vLLM for CPUs, 3 GB", "vllm serve": "vLLM and a GPU",
    "python -m sglang.launch_server": "SGLang and a GPU", "kubectl": "a cluster",
    "make models": "a run of the default scale", "make animation": "a run of the default scale",
    "make site": "a network, for MkDocs", "hf upload": "an account", "hf download": "a network",
}


def commands(path: Path) -> list[str]:
    """The commands in the indented blocks of a document, in order."""
    found = []
    text = path.read_text().replace("\\\n", " ")
    for line in re.findall(r"^    +(\S.*)$", text, re.MULTILINE):
        for command in re.split(r"\s{2,}#", line)[0].split(" && "):
            command = " ".join(command.split())
            if command.split()[0] in PROGRAMS:
                found.append(command)
    return found


DOCUMENTS = {str(path.relative_to(ROOT)): commands(path)
             for path in [*sorted(ROOT.glob("*.md")), ROOT / "examples/README.md",
                          *sorted((ROOT / "docs").glob("*.md"))]}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_names_is_there(name):
    text, folder = (ROOT / name).read_text(), (ROOT / name).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert not [link for link in links if not (folder / link).exists()]
    paths = re.findall(r"`((?:apr|tests|workflow|docs|examples|presets|profiles)/[\w/.]+)(?::[^`]*)?`", text)
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_command_has_its_place():
    known = (*HERE, *DOCUMENTS[ABLATION])
    beginnings = (*ELSEWHERE, *NEEDS)
    for name, found in DOCUMENTS.items():
        for command in found:
            assert command in known or command.startswith(beginnings), f"{name}: {command}"
    everything = [command for found in DOCUMENTS.values() for command in found]
    assert set(HERE) <= set(everything)
    for beginning in beginnings:
        assert any(command.startswith(beginning) for command in everything), beginning


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_what_runs_a_command_is_there(place):
    name, _, said = place.partition(": ")
    assert said in (ROOT / name).read_text()


def run(laboratory: Laboratory, command: str) -> str:
    """Runs a command as a user would; the environment is there."""
    words = shlex.split(command)
    return laboratory.run(*words, *(["--assume-old=.venv/ready"] if words[0] == "make" else []))


@pytest.mark.parametrize("command", HERE)
def test_commands_after_a_run(made, command):
    assert run(made, command)


def test_the_ablation_of_the_docs(made, tmp_path):
    laboratory = Laboratory(shutil.copytree(made.path, tmp_path / "ablation", symlinks=True))
    for command in DOCUMENTS[ABLATION]:
        said = run(laboratory, command)
        if command.startswith("dvc exp show"):
            assert "close" in said and "rl.policies.apr.kl" in said
        elif command.startswith("dvc params diff"):
            assert re.search(r"rl\.policies\.apr\.kl\s+0\.001\s+0\.1", said)
        elif command.startswith("dvc plots diff"):
            page = (laboratory.path / "results/plots/index.html").read_text()
            assert "close" in page and "accuracy against total tokens" in page
        elif command.startswith("dvc exp apply"):
            assert "kl: 0.1\n" in (laboratory.path / "params.yaml").read_text()
            seal = json.loads((laboratory.path / "results/figures/recipe.json").read_text())
            assert seal["recipe"]["params"]["rl"]["policies"]["apr"]["kl"] == 0.1
            assert not laboratory.planned() and not laboratory.changed_in_dvc()
    assert not laboratory.planned() and not laboratory.changed_in_dvc()
