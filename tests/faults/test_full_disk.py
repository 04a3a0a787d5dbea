"""A disk that fills up, a small tmpfs in a mount namespace of its own: an error, and nothing else is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALONE = ("unshare", "--user", "--map-root-user", "--mount")


def on_small_disk(folder: Path, size: str, script: str) -> str:
    """Runs a shell script with `folder` as a disk of that size; its output, stderr included."""
    mounted = f"mount -t tmpfs -o size={size} tmpfs {folder} && {script}"
    done = subprocess.run([*ALONE, "sh", "-c", mounted], cwd=ROOT, text=True, check=False,
                          env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    return done.stdout


@pytest.fixture
def disk(tmp_path):
    if shutil.which("unshare") is None or "yes" not in on_small_disk(tmp_path, "64k", "echo yes"):
        pytest.skip("no mount namespaces here")
    return tmp_path


def test_parquet(disk):
    said = on_small_disk(disk, "100k", f"""
        python -m apr run problems --scale smoke --root {disk} && sha256sum {disk}/data/problems/*
        python -m apr run problems --root {disk}; echo exit $?
        sha256sum {disk}/data/problems/*; ls -A {disk}/data""")  # fmt: skip
    lines = said.splitlines()
    (error,) = [line for line in lines if line.startswith("apr: error: ")]
    assert error.startswith("apr: error: No space left on device: what was being written is removed")
    assert "exit 2" in lines and "Traceback" not in said
    hashes = [line for line in lines if line.endswith(".parquet")]
    assert len(hashes) == 6 and hashes[:3] == hashes[3:], "the earlier problems are as they were"
    assert lines[-1] == "problems", "no half-written directory is left"


def test_checkpoint(disk):
    script = f"""
from apr.pipeline.plan import load_scale
from apr.core.files import atomic_path
from apr.training.checkpoint import new_model, save_checkpoint
from apr.tasks import make_tokenizer
from pathlib import Path
params, root = load_scale("default"), Path("{disk}")
make_tokenizer(params, root / "tokenizer")
(root / "model").mkdir(); (root / "model/earlier").write_text("kept")
try:
    with atomic_path(root / "model") as partial:
        save_checkpoint(new_model(params.model, 151, 0, 256, 0), root / "tokenizer", partial)
except Exception as error:
    print("failed:", error)
print(sorted(path.name for path in root.iterdir()), (root / "model/earlier").read_text())
"""
    (disk.parent / "checkpoint.py").write_text(script)
    said = on_small_disk(disk, "1m", f"python {disk.parent}/checkpoint.py").splitlines()
    assert any(line.startswith("failed:") and "No space left on device" in line for line in said)
    assert said[-1] == "['model', 'tokenizer'] kept"
