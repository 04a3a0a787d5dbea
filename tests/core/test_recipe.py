"""Seals: what makes an artefact stale, and what a job may read."""

from pathlib import Path

import pytest

from apr.core.errors import DataError
from apr.core.hashes import digest
from apr.core.provenance import provenance
from apr.core.recipe import Job, Reason, make, read_job, why_stale

PARAMS = {"seed": 3, "rl": {"clip": 0.2, "learning_rate": 1e-4}}


def job_at(root: Path, params=PARAMS, upstream=None) -> Job:
    upstream = upstream or {}
    recipe = {"params": params, "code": {"apr/training/rl/train.py": "c0de"},
              "upstream": {name: digest(job.recipe) for name, job in upstream.items()}}
    return Job("rl/apr", "apr.training.rl.train:train_rl", {"policy": "apr"}, {"out": str(root / "model")},
               (str(root / "model"),), str(root / "model" / "recipe.json"),
               {name: job.seal for name, job in upstream.items()}, recipe)


def run(job: Job, weights: str = "1 2 3") -> None:
    with make(job):
        directory = Path(job.outputs[0])
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "weights").write_text(weights)


def test_a_job_file_is_a_job(tmp_path: Path):
    (tmp_path / "job.json").write_text('{"id": "sft/apr"}')
    with pytest.raises(DataError, match="not a job"):
        read_job(tmp_path / "job.json")


@pytest.fixture
def made(tmp_path: Path) -> Job:
    job = job_at(tmp_path)
    assert str(why_stale(job)) == "not made yet"
    run(job)
    return job


def test_fresh_after_making_and_through_its_file(made: Job, tmp_path: Path):
    made.write(tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == made
    assert why_stale(made) is None


def test_another_value_is_named(made: Job, tmp_path: Path):
    other = job_at(tmp_path, {"seed": 3, "rl": {"clip": 0.2, "learning_rate": 2e-4}})
    assert why_stale(other) == Reason("params", "rl.learning_rate", 1e-4, 2e-4)
    assert str(why_stale(other)) == "rl.learning_rate: 0.0001 -> 0.0002"


def test_swapped_values_are_seen(made: Job, tmp_path: Path):
    swapped = job_at(tmp_path, {"seed": 3, "rl": {"clip": 1e-4, "learning_rate": 0.2}})
    assert str(why_stale(swapped)) == "rl.clip: 0.2 -> 0.0001"


def test_changed_added_and_lost_files_are_seen(made: Job, tmp_path: Path):
    weights = tmp_path / "model" / "weights"
    weights.write_text("1 2 4")
    assert str(why_stale(made)) == "weights changed since it was sealed"
    weights.write_text("1 2 3")
    assert why_stale(made) is None
    (tmp_path / "model" / "more").touch()
    assert str(why_stale(made)) == "more changed since it was sealed"
    (tmp_path / "model" / "more").unlink()
    weights.unlink()
    assert str(why_stale(made)) == "weights changed since it was sealed"


def test_broken_seal(made: Job):
    Path(made.seal).write_text('{"recipe": ')
    assert str(why_stale(made)) == f"{made.seal} is broken"


def test_a_job_that_fails_leaves_no_seal(made: Job):
    with pytest.raises(RuntimeError), make(made):
        raise RuntimeError
    assert str(why_stale(made)) == "not made yet"


def test_another_artefact_upstream_of_the_same_recipe_is_seen(made: Job, tmp_path: Path):
    below = job_at(tmp_path / "below", upstream={"sft/apr": made})
    run(below)
    assert why_stale(below) is None
    run(made, "other weights")
    assert why_stale(made) is None
    assert str(why_stale(below)) == "sft/apr was made again"


def test_never_made_from_something_stale(made: Job, tmp_path: Path):
    wanted = job_at(tmp_path, {"seed": 4})
    with pytest.raises(DataError, match="not made from the settings wanted now"):
        run(job_at(tmp_path / "below", upstream={"sft/apr": wanted}))
    Path(made.seal).unlink()
    with pytest.raises(DataError, match="no such file"):
        run(job_at(tmp_path / "below", upstream={"sft/apr": made}))


def test_a_job_reads_what_it_declares_only(made: Job):
    with make(made) as params:
        assert (params.seed, params.rl.clip) == (3, 0.2)
        for undeclared in (lambda: params.sft, lambda: params.rl.temperature, lambda: params.rl.lora):
            with pytest.raises(AttributeError):
                undeclared()


def test_provenance_needs_neither_git_nor_packages(tmp_path, monkeypatch):
    """No git to run, no repository, and none of the packages: it says that it does not know."""
    monkeypatch.setattr("apr.core.provenance.VERSIONED", ("torch", "a-package-that-nobody-has"))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = provenance()
    assert found["commit"] is None and found["versions"]["a-package-that-nobody-has"] is None
    assert found["versions"]["torch"] and found["machine"]["cores"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert provenance()["commit"] is None


def test_nothing_fails_between_the_work_and_its_seal(tmp_path, monkeypatch):
    """What a seal says of machine and code is asked for before the work."""
    def fail():
        raise OSError("no /proc here")

    monkeypatch.setattr("apr.core.recipe.provenance", fail)
    job = job_at(tmp_path)
    with pytest.raises(OSError, match="no /proc here"), make(job):
        pytest.fail("the work was begun")
    monkeypatch.undo()
    with make(job):
        (tmp_path / "model").mkdir()
        monkeypatch.setattr("apr.core.recipe.provenance", fail)
    assert why_stale(job) is None
