"""The scale `laboratory` at the smallest size: its own figures and claims, from problems to checks."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from ruamel.yaml import YAML

from apr.core.files import read_json
from apr.core.params import layers_of, load_params
from apr.core.settings import overlay, read_yaml
from apr.pipeline.plan import Plan
from apr.pipeline.run import run
from apr.results.evidence import read_csv
from apr.results.figures import make
from apr.results.figures.make import LABORATORY

ROOT = Path(__file__).parents[2]

SIZES = ("problems", "grammar", "model", "engine")
SMALL = {
    "traces": {"problems": 300},
    "sft": {"tokens": dict.fromkeys(("sos_plus", "apr", "mixed", "apr_devices"), 20000),
            "checkpoint_steps": 1000},
    "rl": {"steps": 2, "prompts": 2, "group": 2, "rows_per_device": 2, "policies": {
        "parallel": None, "difference": None, "oracle": None, "mixed": None,
        "serial": {"tokens": 192}, "mixed_serial": {"tokens": 192}}},
    "eval": {"problems": 6, "latency_problems": 2, "bootstrap": 100, "sweeps": {
        "children_greedy": {"conditions": [2, 10]}, "first_success": {"conditions": [2, 10]},
        "before": {"samples": 1}, "policies": {"models": ["apr", "critical_path", "own"], "samples": 1},
        "budgets": {"conditions": [64, 192]}, "budgets_rl": {"conditions": [64, 192]},
        "devices": {"conditions": [1, 4, 16]},
        "forms": {"stages": ["sft"], "conditions": [None, 10]}}},
}  # fmt: skip


def test_the_laboratory_makes_its_figures_and_claims(tmp_path, monkeypatch):
    """Job after job in this process, without the paper's figures."""
    monkeypatch.setattr(make, "FIGURES", ())
    smoke = read_yaml(ROOT / "presets/smoke.yaml")
    ((_, preset),) = layers_of(ROOT / "presets/laboratory.yaml")
    small = overlay({name: smoke[name] for name in SIZES}, SMALL)
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(overlay(overlay(read_yaml(ROOT / "params.yaml"), preset), small), file)
    (tmp_path / "apr").symlink_to(ROOT / "apr")
    plan = Plan("default", tmp_path)
    for name, job in plan.jobs.items():
        if job.stage not in ("headline", "report", "demo"):
            run(plan.write_job(name))
    results, params = tmp_path / "results", load_params(tmp_path / "params.yaml")
    rows = {exhibit.name: read_csv(results / f"figures/{exhibit.name}.csv") for exhibit in LABORATORY}
    policies = {name: {row["policy"] for row in rows[name]} for name in ("rewards", "rewarded", "credit")}
    assert policies == {"rewards": {"apr", "critical_path"}, "rewarded": {"apr", "critical_path"},
                        "credit": {"apr", "own"}}  # fmt: skip
    assert {row["step"] for row in rows["rewards"]} == {1, 2}
    assert {row["model"] for row in rows["mixed"]} == {"sos_plus", "mixed", "serial", "mixed_serial"}
    assert "cons@9" in {row["controller"] for row in rows["controllers"]}
    assert {row["children"] for row in rows["children"]} == {2, 10}
    told = {row["devices"] for row in rows["devices_asked"] if row["asked"] is None}
    assert told == {1, 4, 16} and {row["asked"] for row in rows["devices_asked"]} == {None, 2, 10}
    lines = (tmp_path / "data/models/rl/devices/log.jsonl").read_text().splitlines()
    assert all({"children_1", "children_4", "children_16"} <= {*json.loads(line)} for line in lines)
    claims = {row["claim"]: row["status"] for row in read_csv(results / "claims.csv")}
    named = {"critical_path", "credit_own", "mixed_serial", "mixed_serial_rl", "adaptive_over_votes",
             "devices_children", "devices_worth"}  # fmt: skip
    assert named <= {name for name, status in claims.items() if status != "not measured"}
    assert "credit_oracle" not in claims and read_json(results / "checks.json")["evaluation rows"] > 100
    traces = pq.read_table(tmp_path / "data/traces/mixed.parquet")
    kinds = {*traces["condition_kind"].to_pylist()}
    assert kinds == {None, "tokens", "children"} and params.traces.spawns("mixed") == 10
