"""Parameters: one line that names key, value and what is allowed."""

from pathlib import Path

import pytest

from apr.core.errors import ParamsError
from apr.core.params import load_params, overlay, parse_params, partial_params, read_yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("rl", "lerning_rate", 1e-4, "rl.lerning_rate: unknown key"),
        ("rl", "steps", "many", "rl.steps: 'many' is not allowed"),
        ("rl", "clip", -0.2, "rl.clip: -0.2 is not allowed; Input should be greater than 0"),
        ("model", "heads", 3, "model.hidden: 128 is not allowed; allowed: a multiple of 2 * model.heads = 6"),
        ("eval", "problems", 10**6, "eval.problems: 1000000 is not allowed; allowed: at most problems.test"),
        ("problems", "target_range", [50, 10], "problems.target_range: [50, 10] is not allowed"),
        ("rl", "policies", {"apr": {"method": "apprr"}}, "rl.policies.apr.method: 'apprr' is not allowed"),
    ],
)
def test_bad_value(section, key, value, message):
    values = read_yaml(ROOT / "params.yaml")
    values[section][key] = value
    with pytest.raises(ParamsError) as error:
        parse_params(values, "params.yaml")
    assert str(error.value).startswith(f"params.yaml: {message}")
    assert "\n" not in str(error.value)


def test_missing_and_broken_files(tmp_path: Path):
    with pytest.raises(ParamsError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("rl: {steps: [}")
    with pytest.raises(ParamsError, match="not valid YAML") as error:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path):
    (tmp_path / "params.yaml").write_text("x: 1e-05\n")
    assert read_yaml(tmp_path / "params.yaml") == {"x": 1e-05}


def test_overlay_merges_mappings_and_replaces_lists():
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 5}
    assert overlay(base, {"a": {"y": [3]}, "b": None}) == {"a": {"x": 1, "y": [3]}, "b": None}


def test_null_removes_a_named_entry():
    values = read_yaml(ROOT / "params.yaml")
    preset = {"traces": {"methods": {"sos": None}}, "sft": {"tokens": {"sos": None}},
              "eval": {"sweeps": {"temperature_serial": None}}}
    params = parse_params(overlay(values, preset))
    assert "sos" not in {**params.traces.methods, **params.sft.tokens}
    assert "temperature_serial" not in params.eval.sweeps


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_valid(preset: Path):
    load_params(ROOT / "params.yaml", preset)


def test_partial_params_keep_their_types():
    params = load_params(ROOT / "params.yaml")
    values = params.model_dump(mode="json")
    partial = partial_params({"problems": values["problems"], "rl": {"policies": values["rl"]["policies"]}})
    assert partial.problems == params.problems
    assert partial.rl.policies == params.rl.policies
