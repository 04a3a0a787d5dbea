"""Training in several processes, by configuration."""

import json

from tests.conftest import new_laboratory


def test_a_parameter_makes_training_use_two_processes(tmp_path):
    laboratory = new_laboratory(tmp_path)
    laboratory.set("engine.accelerate", "profiles/accelerate/ddp.yaml")
    laboratory.set("sft.rows_per_step", 2)
    laboratory.run("snakemake", "--cores", "2", "data/models/sft/sos/recipe.json")
    seal = json.loads((tmp_path / "data/models/sft/sos/recipe.json").read_text())
    assert "model.safetensors" in seal["outputs"] and seal["made_by"]["processes"] == 2
    said = (tmp_path / "logs/sft/sos.log").read_text()
    assert "accelerate.commands.launch --config_file profiles/accelerate/ddp.yaml -m apr run sft/sos" in said
    assert said.count("ETA 0s") == 1
    assert not laboratory.planned_jobs("--", "data/models/sft/sos/recipe.json")
