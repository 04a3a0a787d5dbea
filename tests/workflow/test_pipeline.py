"""Snakemake and DVC over the same artefacts: they agree on what is stale, after everything that was made."""

import csv
import hashlib
import json
import os
import shutil
import subprocess

import httpx
import pytest
from moto.server import ThreadedMotoServer

from apr.pipeline.plan import Plan
from apr.results.figures.make import FIGURES
from apr.results.headline import NAMES
from tests.conftest import Laboratory

AFTER_RL = {"evaluate", "latency", "headline", "figures", "claims", "checks", "report"}
AFTER_TOKENIZER = {"traces", "sft", "rl", "teacher", "demo"} | AFTER_RL


@pytest.fixture(autouse=True)
def clean(made):
    """Every test starts and ends where both tools have nothing to do."""
    yield
    made.run("git", "checkout", "-q", "--", ".")
    assert not Plan("default", made.path).stale


def edit(laboratory, key, value):
    assert laboratory.set(key, value) != value


def queue(laboratory, jobs, *values):
    """Queues an experiment for each value of `grammar.number_tokens`; `jobs` workers of DVC make their
    tokenizers."""
    for value in values:
        options = ("--queue", "-n", f"n{value}", "-S", f"grammar.number_tokens={value}")
        laboratory.run("dvc", "exp", "run", *options, "tokenizer")
    try:
        laboratory.run("dvc", "exp", "run", "--run-all", "--jobs", str(jobs), timeout=180)
    except subprocess.TimeoutExpired:
        assert jobs > 1, "with one worker nothing is lost"


def experiments(laboratory):
    """The experiments that are done, and their value of `grammar.number_tokens`."""
    table = csv.DictReader(laboratory.run("dvc", "exp", "show", "--csv", "--only-changed").splitlines())
    return {row["Experiment"]: row["grammar.number_tokens"] for row in table
            if row.get("Experiment") and row["State"] in ("", "Success")}  # fmt: skip


def test_all_figures_are_made_and_both_tools_are_done(made):
    for exhibit in FIGURES:
        for suffix in ("svg", "png", "csv"):
            assert (made.path / f"results/figures/{exhibit.name}.{suffix}").stat().st_size > 0
    assert not made.planned() and not made.planned("--config", "first=headline")
    assert not made.changed_in_dvc()
    assert "up to date" in made.run("dvc", "repro")


def test_the_headline_is_what_a_whole_run_says(made):
    figures, headline = made.path / "results/figures", made.path / "data/headline"
    assert {path.name for path in headline.iterdir()} == {
        *(f"{name}.{suffix}" for name in NAMES for suffix in ("csv", "svg", "png")),
        "claims.md", "claims.csv", "recipe.json",
    }  # fmt: skip
    for name in NAMES:
        assert (headline / f"{name}.csv").read_text() == (figures / f"{name}.csv").read_text()
    whole, ours = ((folder / "claims.csv").read_text().splitlines() for folder in (figures.parent, headline))
    assert len(ours) > 10 and set(ours) <= set(whole)
    assert "equal_sequences" not in "\n".join(ours), "its rival was not looked at"


def test_the_run_is_recorded(made):
    run = json.loads((made.path / "results/run.json").read_text())
    assert set(run["jobs"]) == set(Plan("default", made.path).jobs)
    assert run["full_run"]["jobs"] == len(run["jobs"]) >= run["last_run"]["jobs"] > 0
    assert run["full_run"]["wall_seconds"] > 0
    hashes = {path: value for job in run["jobs"].values() for path, value in job["outputs"].items()}
    some = {"data/eval/rl/apr.parquet", "data/models/sft/apr/model.safetensors", "results/metrics.json"}
    assert some <= set(hashes)
    for path, value in hashes.items():
        assert hashlib.sha256((made.path / path).read_bytes()).hexdigest() == value, path
    assert all(job["seconds"] > 0 for job in run["jobs"].values())
    assert run["jobs"]["rl/apr"]["peak_mib"] > 100


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("rl.learning_rate", 3e-5, {"rl", "demo"} | AFTER_RL),
        ("eval.sweeps.window.temperatures", [0.5], {"teacher"} | AFTER_RL),
        ("eval.bootstrap", 77, {"headline", "figures", "claims", "checks", "report"}),
        ("sft.learning_rate", 1e-5, {"sft", "rl", "demo"} | AFTER_RL),
        ("seed", 5, {"problems", "traces", "sft", "rl", "teacher", "demo"} | AFTER_RL),
    ],
)
def test_one_edit_plans_the_same_in_both(made, key, value, expected):
    edit(made, key, value)
    assert made.planned() == expected
    assert made.changed_in_dvc() == expected


def test_jobs_are_planned_one_by_one(made):
    edit(made, "rl.policies.apr_max.kl", 0.5)
    edit(made, "eval.sweeps.window.temperatures", [0.5])
    assert made.planned_jobs() == made.planned_jobs("--config", "first=headline") == {
        "rl/apr_max", "evaluate/rl/apr_max", "evaluate/sft/sos_plus", "latency", "teacher/sos_plus",
        "headline", "figures", "claims", "checks", "report",
    }


def test_an_edit_is_seen_without_the_records_of_snakemake(made):
    shutil.move(made.path / ".snakemake", made.path / ".snakemake.away")
    try:
        assert not made.planned()
        edit(made, "rl.learning_rate", 3e-5)
        assert made.planned() == {"rl", "demo"} | AFTER_RL
    finally:
        shutil.rmtree(made.path / ".snakemake", ignore_errors=True)
        shutil.move(made.path / ".snakemake.away", made.path / ".snakemake")


def test_dates_do_not_matter(made):
    for path in (made.path / "data").rglob("*"):
        path.touch()
    assert not made.planned()


@pytest.mark.parametrize("date", [0, 1, 2**31])
def test_no_date_of_a_file_hides_that_it_is_stale(made, date):
    """Snakemake takes 0 for no date; what lies in the future is newer than everything."""
    for value, expected in ((made.set("rl.learning_rate", 3e-5), {"rl", "demo"} | AFTER_RL), (3e-5, set())):
        for path in (made.path / "data").rglob("*"):
            os.utime(path, (date, date))
        assert made.planned() == expected
        made.set("rl.learning_rate", value)


def test_touched_files_hide_nothing(made):
    edit(made, "rl.learning_rate", 3e-5)
    made.run("snakemake", "--cores", "1", "--touch")
    assert made.planned() == {"rl", "demo"} | AFTER_RL


def test_edited_code_is_seen(made):
    path = made.path / "apr/training/rl/train.py"
    path.write_text(path.read_text() + "# changed\n")
    assert not made.planned()
    path.write_text(path.read_text() + "changed = True\n")
    assert made.planned() == made.changed_in_dvc() == {"rl", "demo"} | AFTER_RL


def test_a_file_changed_inside_a_checkpoint_is_seen(made):
    weights = made.path / "data/models/rl/apr/model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        assert made.planned_jobs() == {
            "rl/apr", "evaluate/rl/apr", "latency", "headline", "figures", "claims", "checks", "report",
            "demo",
        }  # fmt: skip
        assert "rl" in made.changed_in_dvc()
    finally:
        weights.write_bytes(kept)


def test_a_report_of_other_claims_is_stale(made):
    claims = made.path / "results/claims.csv"
    claims.write_text(claims.read_text().replace("supported", "proved"))
    assert made.planned_jobs() == {"claims", "checks", "report"}
    assert {"claims", "report"} <= made.changed_in_dvc()
    made.run("git", "checkout", "-q", "--", "results")
    page = made.path / "results/report.html"
    page.write_text(page.read_text() + " ")
    assert made.planned_jobs() == made.changed_in_dvc() == {"report"}


def test_dvc_repro_runs_what_is_stale_and_an_older_artefact_is_not_taken_for_a_new_one(made):
    tokenizer = made.path / "data/tokenizer/tokenizer.json"
    others = {path: path.stat().st_mtime_ns for path in (made.path / "data").rglob("*.safetensors")}
    older, lock = tokenizer.read_bytes(), (made.path / "dvc.lock").read_text()
    edit(made, "grammar.number_tokens", 97)
    made.run("dvc", "repro", "tokenizer")
    assert tokenizer.read_bytes() != older
    assert {path: path.stat().st_mtime_ns for path in others} == others, "nothing was trained"
    assert made.planned() == made.changed_in_dvc() == AFTER_TOKENIZER

    (made.path / "dvc.lock").write_text(lock)
    made.run("dvc", "checkout", "--force", "tokenizer")
    assert tokenizer.read_bytes() == older
    assert made.planned() == {"tokenizer"} | AFTER_TOKENIZER
    made.run("python", "-m", "apr", "commit")
    assert made.changed_in_dvc() == {"tokenizer"} | AFTER_TOKENIZER, "stale artefacts are not recorded"


def test_snakemake_records_what_it_made_in_dvc(made):
    path = made.path / "apr/results/checks.py"
    path.write_text(path.read_text() + "changed = True\n")
    assert made.changed_in_dvc() == {"checks"}
    made.run("snakemake", "--cores", "2")
    assert not made.planned() and not made.changed_in_dvc()
    made.run("git", "checkout", "-q", "--", ".")
    assert not made.changed_in_dvc(), "figures are in git"


def test_experiments_are_told_apart_and_applied(made):
    """Parts of the pipeline, queued; docs/ablation.md has a whole one."""
    queue(made, 2, "98", "99")
    done = {"n98": "98", "n99": "99"}
    if lost := done.keys() - experiments(made):  # treeverse/dvc#10673; as docs/running.md says:
        shutil.rmtree(made.path / ".dvc/tmp/exps/celery")
        queue(made, 1, *(done[name] for name in lost))
    assert experiments(made) == done
    made.run("dvc", "exp", "apply", "n98")
    assert "number_tokens: 98\n" in (made.path / "params.yaml").read_text()
    seal = json.loads((made.path / "data/tokenizer/recipe.json").read_text())
    assert seal["recipe"]["params"]["grammar"]["number_tokens"] == 98
    assert made.planned() == made.changed_in_dvc() == AFTER_TOKENIZER
    made.run("git", "checkout", "-q", "--", ".")
    made.run("dvc", "checkout", "--quiet")


@pytest.fixture(scope="module", params=["directory", "s3"])
def remote(request, tmp_path_factory):
    """An empty store: what `dvc remote` is told, in order."""
    if request.param == "directory":
        yield [("add", "-d", "store", str(tmp_path_factory.mktemp("store")))]
        return
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"access_key_id": "key", "secret_access_key": "secret"}
    assert httpx.put(f"{url}/runs").is_success, "the bucket"
    yield [("add", "-d", "store", "s3://runs/apr"), ("modify", "store", "endpointurl", url),
           *(("modify", "store", key, value) for key, value in keys.items())]  # fmt: skip
    server.stop()


@pytest.fixture(scope="module")
def clone(made, remote, tmp_path_factory):
    """A clone that has pulled what `made` has pushed."""
    clone = Laboratory(tmp_path_factory.mktemp("clone"))
    made.run("git", "clone", "-q", ".", str(clone.path))
    for laboratory in (made, clone):
        for action, *arguments in remote:
            laboratory.run("dvc", "remote", action, "--local", *arguments)
    made.run("dvc", "push")
    clone.run("dvc", "pull")
    yield clone
    (made.path / ".dvc/config.local").unlink()


def test_a_clone_that_pulls_has_nothing_to_do(made, clone):
    assert not clone.planned() and not clone.changed_in_dvc()
    assert clone.run("dvc", "push").strip() == "Everything is up to date."


@pytest.mark.parametrize("remote", ["directory"], indirect=True)
def test_a_clone_that_pulls_draws_the_same_figures(clone):
    figures = clone.path / "results/figures"
    before = {path.name: path.read_bytes() for path in figures.iterdir() if path.name != "recipe.json"}
    shutil.rmtree(figures)
    assert clone.planned() == {"figures", "checks", "report"}
    clone.run("snakemake", "--cores", "2", "--", "results/figures/recipe.json")
    after = {path.name: path.read_bytes() for path in figures.iterdir() if path.name != "recipe.json"}
    assert before == after and len(before) == 3 * len(FIGURES)
    clone.set("rl.learning_rate", 3e-5)
    assert clone.planned() == clone.changed_in_dvc() == {"rl", "demo"} | AFTER_RL


def test_why_says_what_an_artefact_was_made_from_and_why_it_is_stale(made):
    said = made.run("python", "-m", "apr", "why", "data/models/rl/apr/model.safetensors").splitlines()
    assert said[0] == "rl/apr: fresh" and "  seed: 0" in said and "  versions.python: 3" in "".join(said)
    assert "  sft/apr: data/models/sft/apr/recipe.json" in said
    said = made.run("python", "-m", "apr", "why", "data/problems").splitlines()
    commit = made.run("git", "rev-list", "--max-parents=0", "HEAD").strip()
    assert said[0] == "problems: fresh" and f"  commit: {commit}" in said
    edit(made, "sft.learning_rate", 1e-5)
    said = made.run("python", "-m", "apr", "why", "results/figures/fig5.svg").splitlines()
    assert said[:3] == ["figures: stale", "  figures: sft/sos is made from other settings",
                        "  sft/sos: sft.learning_rate: 0.004 -> 1e-05"]  # fmt: skip
    said = made.run("python", "-m", "apr", "why", "data/models", fails=True)
    assert said.startswith("apr: error: data/models: no artefact of scale 'default'; they are data/")


def test_artefacts_that_parameters_no_longer_name_are_pruned_when_asked(made):
    copy = shutil.copytree(made.path / "data/models/rl/apr_max", made.path / "data/models/rl/apr_max-backup")
    policies, sweeps = made.set("rl.policies", {}), made.set("eval.sweeps", {})
    made.set("rl.policies", {name: its for name, its in policies.items() if name != "apr_max"})
    made.set("eval.sweeps", {name: its for name, its in sweeps.items() if "apr_max" not in its["models"]})
    gone = [f"data/{path}" for path in ("models/rl/apr_max", "eval/rl/apr_max.parquet")]
    kept = shutil.copytree(made.path / "data", made.path.parent / "kept")
    try:
        made.run("snakemake", "--cores", "2", "data/problems/recipe.json")
        assert all((made.path / path).exists() for path in gone), "no run removes anything"
        assert " that the parameters no longer name are left" in made.run("python", "-m", "apr", "status")
        said = made.run("python", "-m", "apr", "prune")
        assert all(f"{path}: to be removed (--yes)\n" in said for path in gone)
        assert all((made.path / path).exists() for path in gone)
        assert "backup" not in said and "data/traces" not in said
        made.run("python", "-m", "apr", "prune", "--yes")
        assert not any((made.path / path).exists() for path in gone) and copy.exists()
        assert "data/models" not in made.run("python", "-m", "apr", "prune")
    finally:
        made.set("rl.policies", policies)
        made.set("eval.sweeps", sweeps)
        shutil.rmtree(made.path / "data")
        shutil.move(kept, made.path / "data")
        shutil.rmtree(copy)
    assert not made.planned() and not made.changed_in_dvc()
