"""Training in several processes, by configuration."""

import json
import shutil

from tests.conftest import Laboratory

SEAL = "data/models/sft/sos/recipe.json"


def test_a_parameter_makes_training_use_two_processes(made, tmp_path):
    laboratory = Laboratory(shutil.copytree(made.path, tmp_path / "laboratory", symlinks=True))
    laboratory.set("engine.accelerate", "profiles/accelerate/ddp.yaml")
    laboratory.set("sft.rows_per_step", 2)
    assert laboratory.planned_jobs("--", SEAL) == {"sft/sos"}
    laboratory.run("snakemake", "--cores", "2", SEAL)
    seal = json.loads((laboratory.path / SEAL).read_text())
    assert "model.safetensors" in seal["outputs"] and seal["made_by"]["processes"] == 2
    said = (laboratory.path / "logs/sft/sos.log").read_text()
    assert "accelerate.commands.launch --config_file profiles/accelerate/ddp.yaml -m apr run sft/sos" in said
    assert said.count("ETA 0s") == 1
    assert not laboratory.planned_jobs("--", SEAL)
