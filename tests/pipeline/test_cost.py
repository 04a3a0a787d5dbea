"""What `apr plan` estimates, against counts by hand, PyTorch's own, and the bytes that runs have made."""

from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch.utils.flop_counter import FlopCounterMode

from apr.cli.main import main
from apr.core.errors import DataError, ParamsError
from apr.core.files import read_json, write_json
from apr.core.params import Params
from apr.engine.flops import Device, sizes_of
from apr.evaluation.points import greedy_points, timed
from apr.pipeline.cost import Cost, Estimate, rates_for, rates_of, short
from apr.pipeline.plan import load_scale
from apr.training.checkpoint import new_model

ROOT = Path(__file__).parents[2]


def within(share: float, expected: float):
    return pytest.approx(expected, rel=share)


def training_only(params: Params, **model: object) -> Params:
    return params.model_copy(update={
        "model": params.model.model_copy(update=model),
        "rl": params.rl.model_copy(update={"policies": {}}),
        "eval": params.eval.model_copy(update={"sweeps": {}}),
    })  # fmt: skip


@pytest.fixture(scope="module")
def default() -> Estimate:
    return Estimate(load_scale("default", ROOT))


@pytest.mark.parametrize("tied, kv_heads", [(True, 4), (False, 2)])
def test_flops_are_those_that_are_computed(tied, kv_heads):
    params = load_scale("smoke", ROOT)
    shape = params.model.model_copy(update={"layers": 4, "hidden": 128, "heads": 4, "ffn": 344,
                                            "tie_embeddings": tied, "kv_heads": kv_heads})  # fmt: skip
    model = new_model(shape, 160, 0, 256, seed=0, attention="eager")
    sizes = sizes_of(model)
    ids = torch.randint(160, (3, 200))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    # Eager attention computes the whole square of which a causal kernel computes half.
    assert counter.get_total_flops() == within(0.01, sizes.forward(600, 2 * 3 * 200**2))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    assert counter.get_total_flops() == within(0.02, 3 * sizes.forward(600, 2 * 3 * 200**2))


@pytest.mark.parametrize("tied, kv_heads", [(True, 2), (False, 1)])
def test_parameters_by_hand(tied, kv_heads):
    params = training_only(load_scale("smoke", ROOT), tie_embeddings=tied, kv_heads=kv_heads)
    estimate = Estimate(params)
    words = 4 + params.problems.numbers + params.grammar.max_children + 10 + 101 + 22
    layer = 2 * 32 * 32 + 2 * 32 * 16 * kv_heads + 3 * 32 * 64
    assert estimate.sizes.weights == 2 * layer + words * 32
    assert estimate.sizes.attention == 2 * 32
    assert estimate.parameters == 2 * layer + (5 + 2) * 32 + words * 32 * (1 if tied else 2)
    assert estimate.costs["sft/apr"].disk == 4 * estimate.parameters


def test_the_paper_scale_is_the_papers():
    """228M parameters without embeddings; 19,000 batches of 256 sequences of each method."""
    estimate = Estimate(training_only(load_scale("paper", ROOT)))
    weights = 18 * (4 * 1024**2 + 3 * 1024 * 2752) + (4 + 4 + 10 + 10 + 101 + 22) * 1024
    assert estimate.sizes == (weights, 18 * 1024) and weights == within(0.005, 228e6)
    assert estimate.parameters == weights + 37 * 1024
    for method, (mean, context) in estimate.threads.items():
        tokens = estimate.params.sft.tokens[method]
        assert tokens / mean == within(0.05, 19_000 * 256), method
        flops = 6 * weights * tokens + 6 * 18 * 1024 * context * tokens
        assert estimate.costs[f"sft/{method}"].trained == within(1e-9, flops)


def test_rl_and_evaluation_by_hand(default):
    """The solver's tokens, as often as the parameters say; so many passes over them."""
    params, costs = default.params, default.costs
    sampled, tokens, squares, sequential = default._written("apr", 10)
    forward = 6 * 32 * 5 * default.sizes.forward(tokens, squares)
    held = costs["rl/apr_max"]
    assert held.tokens == within(1e-9, 6 * 32 * 5 * sampled)
    assert (held.decoded, held.trained) == (within(1e-9, forward), within(1e-9, 7 * forward))
    assert costs["evaluate/rl/apr_max"].tokens == within(1e-9, 2 * params.eval.problems * sampled)
    each = [default._written(model.method(params), point.condition)[3]
            for model in timed(params) for point in greedy_points(params, model)]  # fmt: skip
    assert sequential in each and len(each) > 20
    assert costs["latency"].work == within(1e-9, params.eval.latency_problems * sum(each))
    assert sequential < sampled / 2, "children decode beside each other"
    short, long = (default._written("sos_plus", budget)[0] for budget in (64, None))
    assert short < 64 < long, "a budget of tokens cuts"


def test_another_model_or_no_trace_is_refused():
    params = load_scale("smoke", ROOT)
    other = params.model_copy(update={"sft": params.sft.model_copy(update={"base": "elsewhere"})})
    with pytest.raises(ParamsError, match=r"sft\.base: 'elsewhere' is not allowed; allowed: null"):
        Estimate(other)
    narrow = params.model_copy(update={"grammar": params.grammar.model_copy(update={"window": 8})})
    with pytest.raises(ParamsError, match=r"grammar\.window: 8 is not allowed; allowed: more, as no trace"):
        Estimate(narrow)


def test_the_recorded_run_left_as_many_bytes_as_is_estimated(default):
    stages = YAML(typ="safe").load((ROOT / "dvc.lock").read_text())["stages"].values()
    sizes = {part["path"]: part["size"] for stage in stages for part in stage.get("outs", ())}
    for folder, stage in (("traces", "traces/"), ("eval", "evaluate/"), ("teacher", "teacher/")):
        disk = sum(cost.disk for name, cost in default.costs.items() if name.startswith(stage))
        assert disk == within(0.25, sizes[f"data/{folder}"]), folder


def test_a_run_of_the_smoke_scale_is_as_large_as_was_estimated(made):
    estimate, data = Estimate(load_scale("default", made.path)), made.path / "data"
    for method, (mean, _) in estimate.threads.items():
        traces, sft = estimate.costs[f"traces/{method}"], estimate.costs[f"sft/{method}"]
        assert traces.disk == within(0.02, (data / f"traces/{method}.parquet").stat().st_size)
        metrics = read_json(data / f"models/sft/{method}/metrics.json")
        assert sft.tokens == within(0.05, metrics["tokens"])
        assert mean == within(0.1, metrics["tokens"] / metrics["epochs"] / metrics["threads"])  # of some 100
        assert sft.disk == within(0.1, (data / f"models/sft/{method}/model.safetensors").stat().st_size)
    for policy in estimate.params.rl.policies:
        disk = estimate.costs[f"rl/{policy}"].disk
        assert disk == within(0.1, (data / f"models/rl/{policy}/model.safetensors").stat().st_size)


def test_hours_by_hand():
    device = Device({"bfloat16": 100.0, "float32": 10.0}, bandwidth=5.0)
    assert Cost(trained=14400.0, precision="bfloat16").hours(device) == pytest.approx(0.1)  # 144 s at 40 %
    assert Cost(decoded=1440.0, read=360.0).hours(device) == pytest.approx(0.1)
    assert Cost(decoded=1440.0, read=1440.0).hours(device) == pytest.approx(0.2)


def test_a_rate_is_all_work_of_a_stage_over_all_its_seconds():
    costs = {"sft/a": Cost(work=100.0), "sft/b": Cost(work=300.0), "sft/c": Cost(), "figures": Cost()}
    jobs = {"sft/a": {"seconds": 25.0}, "sft/b": {"seconds": 55.0}, "sft/c": {}, "sft/gone": {"seconds": 1.0},
            "figures": {"seconds": 4.0}}  # fmt: skip
    assert rates_of({"jobs": jobs}, costs) == {"sft": 5.0, "figures": 0.25}


def test_rates_are_given_or_recorded(tmp_path, default, capsys):
    recorded = ROOT / "results/run.json"
    rates = rates_for(default, "default", recorded, ["sft=4e13", "evaluate=2e9"])
    assert rates == rates_for(default, "default", recorded, []) | {"sft": 4e13, "evaluate": 2e9}
    assert rates.keys() == {name.split("/")[0] for name in default.costs}
    assert rates_for(default, "default", None, ["sft=1"]) == {"sft": 1.0}
    for given in ("sft", "sft=", "sft=fast", "sft=0", "sft=-1", "sft=nan", "sft=inf", "stf=1", "=1"):
        with pytest.raises(ParamsError, match=f"--rate: '{given}' is not allowed; allowed: STAGE=NUMBER"):
            rates_for(default, "default", None, [given])
    write_json(tmp_path / "other.json", {"jobs": []})
    with pytest.raises(DataError, match=r"other\.json: not a recorded run"):
        rates_for(default, "default", tmp_path / "other.json", [])


def test_the_table(capsys):
    assert main(["plan", "--scale", "smoke", "--rate", "sft=1e6", "--measured", str(ROOT / "absent")]) == 2
    assert capsys.readouterr().err == f"apr: error: {ROOT / 'absent'}: no such file\n"
    assert main(["plan", "--scale", "smoke", "--rate", "sft=1e6"]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.split("  ")[0] == "job" and first.endswith("here h")
    table = {row.split()[0]: row.split() for row in rows if row.strip()}
    assert table["sft/apr"][1] == "20k" and table["figures"][1] == "-"
    trained = Estimate(load_scale("smoke")).costs["sft/apr"].trained
    assert float(table["sft/apr"][-1]) == within(0.01, trained / 3.6e9)


def test_short():
    assert [short(value) for value in (0, 0.012345, 999.6, 2.5e9)] == ["-", "0.0123", "1k", "2.5G"]
