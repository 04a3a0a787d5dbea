"""What is planned before anything is made: jobs, their parameters, one-line errors."""

import shutil
from inspect import signature
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from apr.core.errors import ParamsError
from apr.pipeline.plan import Plan, load_scale, select
from apr.pipeline.run import function_of
from apr.pipeline.stages import STAGES
from workflow.write_dvc import documents

ROOT = Path(__file__).parents[2]


def test_select_narrows_mappings():
    values = {"a": {"x": 1, "y": {"p": 2, "q": 3}}, "b": 4, "c": 5}
    assert select(values, ["a.y", "b"], {"a.y": {"q"}}) == {"a": {"y": {"q": 3}}, "b": 4}
    assert select(values, ["a"], {"a.y": set()}) == {"a": {"x": 1, "y": {}}}


def test_dvc_yaml_of_every_scale_is_what_the_table_says():
    wanted = documents(ROOT)
    assert {f"scales/{path.stem}/dvc.yaml" for path in (ROOT / "presets").glob("*.yaml")} < wanted.keys()
    for path, text in wanted.items():
        assert (ROOT / path).read_text() == text, f"{path}: write it anew with `python -m workflow.write_dvc`"


def test_every_declared_dependency_exists():
    values = YAML(typ="safe").load(ROOT / "params.yaml")  # DVC does not know our defaults
    for name, stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].items():
        assert select(values, stage["params"], {}), name
        for path in stage["deps"]:
            assert path.startswith(("data/", "results/")) or (ROOT / path).exists(), f"{name}: {path}"


def test_dvc_hears_of_what_a_preset_changes():
    stages = YAML(typ="safe").load(ROOT / "scales/gpu/dvc.yaml")["stages"]
    assert stages["rl"]["params"] == [{"../../params.yaml": ["task", "seed", "grammar", "engine", "rl"]},
                                      {"../../presets/gpu.yaml": ["grammar", "engine", "rl"]}]
    stages = YAML(typ="safe").load(ROOT / "scales/seed1/dvc.yaml")["stages"]
    assert stages["tokenizer"]["params"][1:] == [], "that preset sets nothing of it"


def test_rules_read_and_write_what_the_table_says(bare):
    plan = Plan("default", bare.path)
    planned = bare.plan()
    assert planned.keys() == plan.jobs.keys()

    def paths(text):
        return {bare.path / path for path in text.split(", ") if path}

    def inside(path, job):
        return path == Path(job.seal) or any(path.is_relative_to(output) for output in job.outputs)

    for name, job in plan.jobs.items():
        written, read = (paths(planned[name][side]) for side in ("output", "input"))
        assert Path(job.seal) in written and all(inside(path, job) for path in written), name
        read.remove(bare.path / plan.recipe(name))
        above = [plan.jobs[other] for other in job.upstream]
        assert all(any(inside(path, other) for other in above) for path in read), name
        assert all(any(inside(path, other) for path in read) for other in above), name


def test_the_headline_needs_the_models_of_its_figures(bare):
    models = ["sft/sos_plus", "sft/apr", "rl/sos_plus", "rl/apr", "rl/apr_max"]
    needed = {"problems", "tokenizer", "traces/sos_plus", "traces/apr", "teacher/sos_plus", "teacher/apr",
              "latency", "headline", *models, *(f"evaluate/{model}" for model in models)}  # fmt: skip
    assert Plan("default", ROOT).needed("headline") == needed
    assert bare.planned_jobs("--", "headline") == needed


def test_what_does_not_belong_to_the_headline_waits_for_it(bare):
    plan = Plan("default", bare.path)
    first, seal = plan.needed("headline"), plan.jobs["headline"].seal.removeprefix(f"{bare.path}/")
    planned = bare.plan("--config", "first=headline")
    assert planned.keys() == plan.jobs.keys()
    assert {name for name, job in planned.items() if seal not in job["input"].split(", ")} == first
    said = bare.run("snakemake", "-n", "--config", "first=headlines", fails=True)
    assert "apr: error: --config first: headlines is not allowed; allowed: problems, tokenizer, " in said


def test_the_table_calls_functions_that_take_what_it_gives():
    for stage in STAGES.values():
        taken = signature(function_of(stage.function)).parameters
        named = {name for name in ("method", "policy", "stage", "model") if f"{{{name}}}" in stage.job}
        given = {"params", *named, *stage.inputs, *stage.outputs}
        needed = {name for name, its in taken.items() if its.default is its.empty}
        assert needed <= given <= set(taken), stage.name


def test_jobs_declare_their_own_entries_only():
    plan = Plan("default", ROOT)
    assert list(plan.jobs["sft/apr"].recipe["params"]["sft"]["tokens"]) == ["apr"]
    assert list(plan.jobs["rl/apr_max"].recipe["params"]["rl"]["policies"]) == ["apr_max"]
    evaluation = plan.jobs["evaluate/sft/sos"].recipe["params"]
    assert evaluation["rl"]["policies"] == {}
    assert list(evaluation["eval"]["sweeps"]) == ["temperature_serial"]


def test_scales_do_not_share_an_output(bare):
    default, smoke = Plan("default", bare.path), Plan("smoke", bare.path)
    assert not {job.seal for job in default.jobs.values()} & {job.seal for job in smoke.jobs.values()}
    assert all(f"{bare.path}/scales/smoke/" in job.seal for job in smoke.jobs.values())


def test_everything_is_planned_in_a_fresh_clone(bare):
    assert bare.planned_jobs("--config", "scale=smoke") == set(Plan("smoke", bare.path).jobs)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("rl.steps", 0, "rl.steps: 0 is not allowed; Input should be greater than or equal to 1"),
        ("rl.policies.apr.method", "aprr", "rl.policies.apr.method: 'aprr' is not allowed; allowed: one of"),
        ("eval.problems", 10**6, "eval.problems: 1000000 is not allowed; allowed: at most problems.test"),
    ],
)
def test_bad_parameters_end_in_one_line_before_any_work(bare, key, value, message):
    before = bare.set(key, value)
    try:
        for command in (("snakemake", "-n"), ("python", "-m", "apr", "params"), ("dvc", "repro", "problems")):
            lines = [line for line in bare.run(*command, fails=True).splitlines() if "apr: error" in line]
            assert lines and lines[0].startswith(f"apr: error: params.yaml: {message}")
            assert [path.name for path in (bare.path / "data").iterdir()] == ["README.md"]
    finally:
        bare.set(key, before)


def test_parameters_that_are_no_text_end_in_one_line(bare):
    path = bare.path / "params.yaml"
    before = path.read_bytes()
    path.write_bytes("# Größe".encode("latin-1") + before)
    try:
        for command in ("snakemake -n", "python -m apr params", "python -m apr status"):
            said = bare.run(*command.split(), fails=True)
            assert said.splitlines()[-1] == "apr: error: params.yaml: not a text in UTF-8"
        assert "Traceback" not in bare.run("dvc", "repro", "problems", fails=True)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["Smoke", "a.b", "null", "a b"])
def test_scales_have_names(bare, name):
    path = bare.path / "presets" / f"{name}.yaml"
    path.write_text("seed: 1")
    try:
        with pytest.raises(ParamsError, match="not named as a scale; allowed: 1 to 64 of a-z"):
            load_scale(name, bare.path)
    finally:
        path.unlink()


def test_unknown_scale_and_config_key(bare):
    output = bare.run("snakemake", "-n", "--config", "scale=large", fails=True)
    scales = ", ".join(["default", *sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))])
    assert f"apr: error: scale: 'large' is not allowed; allowed: {scales}" in output
    output = bare.run("snakemake", "-n", "--config", "scael=smoke", fails=True)
    assert "apr: error: --config scael: unknown key; allowed: scale, record, first" in output


@pytest.mark.parametrize("verb", ["run", "claims", "status", "prune", "chunk"])
def test_every_verb_explains_itself(bare, verb):
    assert f"usage: apr {verb}" in bare.run("python", "-m", "apr", verb, "--help")


def test_the_contents_of_a_pretrained_model_are_in_recipes(bare):
    """Its weights make the models stale; its tokenizer, traces and teachers too."""
    base = bare.path / "pretrained" / "tiny"
    base.mkdir()
    hidden = ".cache/huggingface/download/config.json.metadata"
    (base / hidden).parent.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "generation_config.json", "model.safetensors", hidden):
        (base / name).write_text(name)

    def recipes():
        return {name: job.recipe for name, job in Plan("default", bare.path).jobs.items()}

    def changed_by(name):
        before = recipes()
        (base / name).write_text("other")
        after = recipes()
        return {job.split("/")[0] for job in after if after[job] != before[job]}

    scratch = recipes()
    assert not any("base" in recipe for recipe in scratch.values())
    bare.set("sft.base", "pretrained/tiny")
    try:
        assert not any(name == "demo" for name in recipes()), "its page has this project's own tokens"
        readers = {name.split("/")[0] for name, recipe in recipes().items() if "base" in recipe}
        assert readers == {"tokenizer", "sft"}
        below = {"sft", "rl", "evaluate", "latency", "headline", "figures", "claims", "checks", "report"}
        assert changed_by("model.safetensors") == below
        assert changed_by(hidden) == changed_by("generation_config.json") == set()
        assert changed_by("tokenizer.json") == below | {"tokenizer", "traces", "teacher"}
        assert Plan("default", bare.path).jobs["sft/apr"].recipe["base"].keys() == {
            "config.json", "tokenizer.json", "model.safetensors",
        }  # fmt: skip
    finally:
        bare.set("sft.base", None)
        shutil.rmtree(base)
    assert recipes() == scratch and "demo" in scratch


@pytest.mark.parametrize("base", ["pretrained/absent", "elsewhere", "/elsewhere"])
def test_a_pretrained_model_is_a_directory_where_dvc_sees_it(bare, base):
    (bare.path / "elsewhere").mkdir(exist_ok=True)
    (bare.path / "elsewhere" / "config.json").write_text("{}")
    bare.set("sft.base", base)
    try:
        message = f"sft.base: '{base}' is not allowed; allowed: null, or a model's directory in pretrained/"
        with pytest.raises(ParamsError, match=message):
            Plan("default", bare.path)
    finally:
        bare.set("sft.base", None)
        shutil.rmtree(bare.path / "elsewhere")


def test_data_errors_end_in_one_line(bare, tmp_path: Path):
    output = bare.run("python", "-m", "apr", "run", "traces/sos", "--root", str(tmp_path), fails=True)
    assert output.splitlines()[-1] == f"apr: error: {tmp_path}/data/problems/recipe.json: no such file"
    output = bare.run("python", "-m", "apr", "run", "traces/sas", fails=True)
    assert output.startswith("apr: error: job: 'traces/sas' is not allowed; allowed: problems, tokenizer, ")
