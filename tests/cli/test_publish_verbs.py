"""The models that come with this project: `apr solve` and `apr demo` without a model, installed or not."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from apr.cli import publish
from apr.cli.main import main
from apr.core.files import write_json
from apr.pipeline.plan import load_scale
from apr.tasks import make_tokenizer, open_task
from apr.training.checkpoint import new_model, save_checkpoint
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Both models, untrained, as `apr publish` lays them out."""
    params, root = load_scale("default", ROOT), tmp_path_factory.mktemp("own")
    make_tokenizer(params, root / "tokenizer")
    vocabulary = open_task(params).language.vocabulary
    for seed, name in enumerate((publish.PARALLEL, publish.SERIAL)):
        folder = root / "models" / name
        model = new_model(params.model, vocabulary.size, vocabulary.pad, params.grammar.window, seed)
        save_checkpoint(model, root / "tokenizer", folder)
        write_json(folder / "params.json", params.model_dump(mode="json"))
    return root / "models"


def test_without_a_model_those_of_the_project_are_taken(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publish, "HOMES", (tmp_path / "absent", home))
    monkeypatch.chdir(tmp_path)
    assert main(["solve", "3 5 9 12 -> 27"]) in (0, 1)
    assert "tokens sampled" in capsys.readouterr().out
    assert main(["demo"]) == 0
    assert capsys.readouterr().out == "demo.html\n" and "weights-parallel" in Path("demo.html").read_text()


@pytest.mark.parametrize("command", [["solve", "3 5 9 12 -> 27"], ["demo"]])
def test_where_there_is_none_one_line_says_so(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr(publish, "HOMES", (tmp_path / "models", tmp_path / "share"))
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"apr: error: {tmp_path}/models/rl/apr: no such model; allowed: --model with a")


def test_what_pip_installs_has_them(home, tmp_path):
    """`pip install .` of a tree that has models, into an empty folder; its `apr` is run from elsewhere."""
    tree, there = tmp_path / "tree", tmp_path / "there"
    shutil.copytree(ROOT / "apr", tree / "apr", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tree / name)
    shutil.copytree(home, tree / "models")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
                    "--no-index", "--ignore-installed", "--prefix", str(there), "."],
                   cwd=tree, check=True)  # fmt: skip
    packages = sysconfig.get_path("purelib", vars={"base": str(there)})
    code = ("import sysconfig, sys; real = sysconfig.get_path\n"
            f"sysconfig.get_path = lambda name: {str(there)!r} if name == 'data' else real(name)\n"
            "from apr.cli.main import main; sys.exit(main(sys.argv[1:]))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, "solve", "3 5 9 12 -> 27"], cwd=tmp_path, text=True,
                          env={"PYTHONPATH": packages, "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
                          capture_output=True, check=False)  # fmt: skip
    assert "tokens sampled" in done.stdout, done.stderr
