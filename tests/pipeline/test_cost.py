"""What `apr plan` estimates, against independent counts and against what runs have made."""

import csv
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch.utils.flop_counter import FlopCounterMode

from apr.core.errors import ParamsError
from apr.core.files import read_json
from apr.engine.checkpoint import new_model
from apr.engine.flops import Device, sizes_of
from apr.evaluation.points import Point
from apr.pipeline.cost import Cost, Estimate, model_of
from apr.pipeline.plan import load_scale
from apr.pipeline.rates import Rates, adopt_habits, short, work

ROOT = Path(__file__).parents[2]


def within(share: float, expected: float):
    return pytest.approx(expected, rel=share)


@pytest.fixture(scope="module")
def default() -> Estimate:
    """As `apr plan` estimates: models decode what those of the recorded run did."""
    estimate = Estimate(load_scale("default", ROOT))
    adopt_habits(estimate, ROOT / "results/figures/fig7.csv")
    return estimate


def shown(figure: str, **wanted: object) -> list[dict[str, str]]:
    """The rows of a figure of the recorded run with these values, numbers as numbers."""
    rows = csv.DictReader((ROOT / f"results/figures/{figure}.csv").open())
    return [row for row in rows if all(type(value)(row[name]) == value for name, value in wanted.items())]


@pytest.mark.parametrize("tied, kv_heads", [(True, 4), (False, 2)])
def test_parameters_and_flops_are_those_of_the_model(tied, kv_heads):
    params = load_scale("default", ROOT)
    change = {"tie_embeddings": tied, "kv_heads": kv_heads}
    params = params.model_copy(update={"model": params.model.model_copy(update=change)})
    words = 4 + params.problems.numbers + params.grammar.max_children + 10 + 101 + 22
    model = new_model(params.model, words, 0, 256, seed=0, attention="eager")
    estimate = model_of(params)
    assert estimate.parameters == model.num_parameters()
    assert estimate.sizes == sizes_of(model)
    ids = torch.randint(words, (3, 200))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    # Eager attention computes the whole square of which a causal kernel computes half.
    assert counter.get_total_flops() == within(0.01, estimate.sizes.forward(600, 2 * 3 * 200**2))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    assert counter.get_total_flops() == within(0.02, 3 * estimate.sizes.forward(600, 2 * 3 * 200**2))


def test_a_model_that_is_not_in_the_parameters_is_refused():
    params = load_scale("default", ROOT)
    params = params.model_copy(update={"sft": params.sft.model_copy(update={"base": "elsewhere"})})
    with pytest.raises(ParamsError, match=r"sft\.base: 'elsewhere' is not allowed; allowed: null"):
        Estimate(params)


def test_models_decode_as_many_tokens_as_is_estimated(default):
    """Evaluations of the recorded run, whose Figure 7 has the habits; most of what is decoded is not in it.

    Where temperatures 0.1 and 0.5 are in no figure, they are taken to be the mean of 0 and 1.
    """
    def free(model: str, stage: str, samples: int) -> float:
        greedy, hot = (float(shown("fig7", model=model, stage=stage, temperature=temperature)[0]["tokens"])
                       for temperature in (0.0, 1.0))
        return greedy + (greedy + hot) + samples * hot

    serial = {t: float(shown("fig8", series="SoS+ pass@n", amount=1, temperature=t)[0]["tokens"])
              for t in (0.1, 0.5, 1.0)}
    apr = "APR, children asked for"
    asked = shown("fig4a", series=apr)
    asked += [row for t in (0.1, 0.5) for row in shown("fig8", series=apr, temperature=t)]
    held = shown("fig7", model="apr_max", stage="rl")
    measured = {
        "sft/sos_plus": sum(float(row["total"]) for row in shown("fig6", model="sos_plus", stage="sft"))
        + 8 * serial[0.1] + 8 * serial[0.5] + 12 * serial[1.0],
        "sft/apr": sum(float(row["total"]) for row in shown("fig6", model="apr", stage="sft"))
        + sum(float(row["tokens"]) for row in asked) + free("apr", "sft", 3)
        - float(shown("fig7", model="apr", stage="sft", temperature=0.0)[0]["tokens"]),
        "rl/sos_plus": free("sos_plus", "rl", 6), "rl/apr": free("apr", "rl", 3),
        "rl/apr_max": sum(float(row["tokens"]) for row in held),
    }  # fmt: skip
    for job, tokens in measured.items():
        assert default.costs[f"evaluate/{job}"].tokens == within(0.16, 1000 * tokens), job
    greedy = read_json(ROOT / "results/metrics.json")
    for method in default.params.sft.tokens:
        problems = default.problems["test"][:250]
        decoded, _ = default.decoder.decode(["sft"], method, [Point(None, 0.0, 0)], problems)
        assert decoded.sampled == within(0.25, greedy[f"sft_{method}_total_greedy"]), method


def test_every_job_takes_as_long_as_is_estimated(default):
    """The recorded run, to whose 40 jobs 14 rates are fitted."""
    run = read_json(ROOT / "results/run.json")
    rates, costs = Rates(run, default.costs), default.costs
    assert len({kind for name, cost in costs.items() for kind in work(name, cost)}) == 14
    for name, job in run["jobs"].items():
        assert rates.seconds(name, costs[name]) == within(0.25, job["seconds"]), name
    expected = sum(rates.seconds(name, costs[name]) for name in run["jobs"])
    assert expected == within(0.1, sum(job["seconds"] for job in run["jobs"].values()))


def test_the_recorded_run_left_as_many_bytes_as_is_estimated(default):
    stages = YAML(typ="safe").load((ROOT / "dvc.lock").read_text())["stages"].values()
    sizes = {part["path"]: part["size"] for stage in stages for part in stage.get("outs", ())}
    for folder, stage in (("traces", "traces/"), ("eval", "evaluate/"), ("teacher", "teacher/")):
        kept = sum(cost.kept for name, cost in default.costs.items() if name.startswith(stage))
        assert kept == within(0.25, sizes[f"data/{folder}"]), folder


def test_a_run_of_the_smoke_scale_is_as_large_as_was_estimated(made):
    estimate, data = Estimate(load_scale("default", made.path)), made.path / "data"

    def size(*paths: Path) -> int:
        return sum(path.stat().st_size for path in paths)

    assert estimate.costs["problems"].kept == size(*(data / "problems").glob("*.parquet"))
    for method, trained_on in estimate.trained_on.items():
        traces, sft = estimate.costs[f"traces/{method}"], estimate.costs[f"sft/{method}"]
        assert traces.kept == within(0.02, size(data / f"traces/{method}.parquet"))
        metrics = read_json(data / f"models/sft/{method}/metrics.json")
        assert sft.tokens == within(0.05, metrics["tokens"])
        assert trained_on.threads == within(0.1, metrics["threads"])
        assert sft.kept == within(0.1, size(data / f"models/sft/{method}/model.safetensors"))
    for policy in estimate.params.rl.policies:
        kept = estimate.costs[f"rl/{policy}"].kept
        assert kept == within(0.1, size(data / f"models/rl/{policy}/model.safetensors"))
    for method in ("apr", "sos_plus"):  # the same rollouts of the solvers
        kept = estimate.costs[f"teacher/{method}"].kept
        assert kept == within(0.02, size(data / f"teacher/{method}.parquet"))


def test_the_paper_scale_is_the_papers():
    """228M parameters without embeddings; 19,000 batches of 256 sequences of each method."""
    params = load_scale("paper", ROOT)
    training_only = {"rl": params.rl.model_copy(update={"policies": {}}),
                     "eval": params.eval.model_copy(update={"sweeps": {}})}  # fmt: skip
    estimate = Estimate(params.model_copy(update=training_only))
    assert model_of(estimate.params).sizes.weights == within(0.005, 228e6)
    for method, trained_on in estimate.trained_on.items():
        sequences = estimate.params.sft.tokens[method] / trained_on.mean
        assert sequences == within(0.05, 19_000 * 256), method


def test_hours_by_hand():
    device = Device({"bfloat16": 100.0, "float32": 10.0}, bandwidth=5.0)
    assert Cost(trained=14400.0, precision="bfloat16").hours(device) == pytest.approx(0.1)  # 144 s at 40 %
    assert Cost(decoded=1440.0, read=360.0).hours(device) == pytest.approx(0.1)
    assert Cost(decoded=1440.0, read=1440.0).hours(device) == pytest.approx(0.2)


def test_rates_of_a_run_give_the_seconds_that_they_were_fitted_to():
    costs = {
        "sft/a": Cost(trained=100.0), "sft/b": Cost(trained=300.0),
        "problems": Cost(units=10.0), "tokenizer": Cost(),
        "evaluate/sft/a": Cost(decoded=50.0, units=10.0), "evaluate/sft/b": Cost(decoded=20.0, units=40.0),
        "rl/a": Cost(trained=10.0, decoded=5.0, units=2.0), "figures": Cost(units=1.0),
    }  # fmt: skip
    seconds = {"sft/a": 25.0, "sft/b": 65.0, "problems": 6.0, "tokenizer": 1.0,
               "evaluate/sft/a": 5 + 50 * 0.3 + 10 * 2.0,
               "evaluate/sft/b": 5 + 20 * 0.3 + 40 * 2.0}  # fmt: skip
    rates = Rates({"jobs": {name: {"seconds": value} for name, value in seconds.items()}}, costs)
    for name, value in seconds.items():
        assert rates.seconds(name, costs[name]) == pytest.approx(value)
    assert rates.seconds("rl/a", costs["rl/a"]) == pytest.approx(5 + 10 * 0.2 + 5 * 0.3 + 2 * 2.0)
    assert rates.seconds("figures", costs["figures"]) is None


def test_short():
    assert [short(value) for value in (0, None, 0.012345, 999.6, 2.5e9)] == ["-", "-", "0.0123", "1k", "2.5G"]
