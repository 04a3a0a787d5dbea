"""DVC on a scale that is not the default one: it is a project of its own in `scales/NAME`."""

from tests.conftest import Laboratory, new_laboratory


def in_scale(laboratory: Laboratory, name: str) -> Laboratory:
    scale = Laboratory(laboratory.path / "scales" / name)
    scale.environment = laboratory.environment
    return scale


def test_dvc_works_on_a_scale_of_its_own(tmp_path):
    whole = new_laboratory(tmp_path / "whole")
    smoke, target = in_scale(whole, "smoke"), "scales/smoke/data/tokenizer/recipe.json"
    whole.run("snakemake", "--cores", "1", "--config", "scale=smoke", "--", target)
    assert "tokenizer:" in (smoke.path / "dvc.lock").read_text(), "a run of the scale is recorded there"
    assert not (whole.path / "dvc.lock").exists() and not (whole.path / "data/tokenizer").exists()
    assert "didn't change, skipping" in smoke.run("dvc", "repro", "tokenizer")
    whole.run("git", "add", "-A")
    whole.run("git", "commit", "-q", "-m", "a run")

    key = "../../params.yaml:grammar.number_tokens=99"
    smoke.run("dvc", "exp", "run", "--temp", "-n", "other", "-S", key, "tokenizer")
    assert "other" in smoke.run("dvc", "exp", "show", "--csv")
    assert "up to date" in smoke.run("dvc", "status", "tokenizer")
    whole.set("grammar.number_tokens", 99)
    assert "changed deps" in smoke.run("dvc", "status", "tokenizer")
    smoke.run("dvc", "repro", "tokenizer")
    assert '"99"' in (smoke.path / "data/tokenizer/tokenizer.json").read_text()

    store = ("dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    smoke.run(*store)
    smoke.run("dvc", "push", "tokenizer")
    whole.run("git", "add", "-A")
    whole.run("git", "commit", "-q", "-m", "another")
    whole.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = in_scale(Laboratory(tmp_path / "clone"), "smoke")
    clone.run(*store)
    clone.run("dvc", "pull", "tokenizer")
    assert not Laboratory(tmp_path / "clone").planned_jobs("--config", "scale=smoke", "--", target)
