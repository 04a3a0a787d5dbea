"""Parameters: one line that names key, value and what is allowed."""

import codecs
import json
import pickle
from copy import deepcopy
from pathlib import Path

import pytest

from apr.core.errors import ParamsError
from apr.core.params import load_params, parse_params, partial_params
from apr.core.settings import is_name, overlay, read_yaml

ROOT = Path(__file__).parents[2]
FULL = load_params(ROOT / "params.yaml").model_dump(mode="json")


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


OTHER = """
problems: {train: 30000, validation: 1, test: 1000}
traces: {methods: {one: {}}}
sft: {tokens: {one: 5}}
rl: {policies: {}}
eval: {sweeps: {two: {models: [one], temperatures: [1.0]}}}
"""


def test_a_preset_that_names_a_task_says_anew_what_is_the_tasks(tmp_path):
    (tmp_path / "other.yaml").write_text(f"task: multiplication{OTHER}")
    params = load_params(ROOT / "params.yaml", tmp_path / "other.yaml")
    assert [*params.traces.methods] == [*params.sft.tokens] == ["one"] and not params.rl.policies
    assert [*params.eval.sweeps] == ["two"] and params.eval.problems == 1000 == params.problems.test
    (tmp_path / "same.yaml").write_text(OTHER)
    with pytest.raises(ParamsError, match="same.yaml: traces.methods.one.solver: missing"):
        load_params(ROOT / "params.yaml", tmp_path / "same.yaml")


def test_a_preset_may_go_over_another(tmp_path):
    (tmp_path / "one.yaml").write_text("seed: 5\nrl: {steps: 7}")
    (tmp_path / "two.yaml").write_text("over: one\nseed: 6")
    params = load_params(ROOT / "params.yaml", tmp_path / "two.yaml")
    assert (params.seed, params.rl.steps, params.rl.prompts) == (6, 7, 32)
    for name in ("two", "three", "[1]", "../one"):
        (tmp_path / "bad.yaml").write_text(f"over: {name}")
        with pytest.raises(ParamsError, match=r"bad.yaml: over: .* allowed: another preset, which goes over"):
            load_params(ROOT / "params.yaml", tmp_path / "bad.yaml")


def test_a_mixture_knows_the_conditions_of_all_its_methods():
    values = read_yaml(ROOT / "params.yaml")
    values["traces"]["methods"]["mixed"] = {"shares": {"sos_plus": 0.7, "apr": 0.3}}
    values["sft"]["tokens"]["mixed"] = 1000
    values["rl"]["policies"]["mixed"] = {"method": "mixed", "tokens": 288}
    values["eval"]["sweeps"]["mixed"] = {"models": ["mixed"], "stages": ["sft", "rl"],
                                         "conditions": [None, 10, 64], "temperatures": [0.0]}  # fmt: skip
    params = parse_params(values)
    kinds = [params.condition_kind("mixed", amount) for amount in (0, 10, 11)]
    assert kinds == ["children", "children", "tokens"] and params.condition_kind("sos_plus", 3) == "tokens"
    assert params.traces.spawns("mixed") == 10 and params.rl.policies["mixed"].amount == 288
    assert [*params.traces.parts("mixed")] == ["sos_plus", "apr"]
    for policy in ({"tokens": 10}, {"tokens": 288, "children": 3}, {"tokens": 64, "method": "apr"}):
        wrong = deepcopy(values)
        wrong["rl"]["policies"]["mixed"] |= policy
        with pytest.raises(ParamsError, match=r"policies.mixed.tokens: \d+ is not allowed; allowed: null, "):
            parse_params(wrong)
    for other, share in (("apr", 0.2), ("mixed", 0.3), ("nobody", 0.3)):
        values["traces"]["methods"]["mixed"] = {"shares": {"sos_plus": 0.7, other: share}}
        with pytest.raises(ParamsError, match=r"mixed.shares: .* allowed: shares of apr, sos, .* up to 1"):
            parse_params(values)


DEVICES = {"method": "apr", "reward": "latency", "devices": [1, 16]}


@pytest.mark.parametrize(("path", "value", "said"), [
    ("grammar.devices", False, "traces.methods.apr.devices_share: 0.3 .*: 0, or with a solver that spawns"),
    ("traces.methods.sos.devices_share", 0.1, "sos.devices_share: 0.1 .*: 0, or with a solver that spawns"),
    ("traces.methods.apr.devices_share", 0.0, r"rl.policies.told.devices: \[1, 16\] .* has a devices_share"),
    ("rl.policies.told", DEVICES | {"children": 3}, r"told.devices: \[1, 16\] .*, without children"),
    ("rl.policies.told", DEVICES | {"devices": [3]}, "told.devices.0: 3 .* Input should be 1, 2, 4, 8 or 16"),
    ("rl.policies.told", DEVICES | {"devices": []}, r"told.devices: \[\] .* at least 1 item"),
    ("rl.policies.told", DEVICES | {"devices": [1, 1]}, "told.devices: .* each only once"),
    ("rl.policies.told", DEVICES | {"devices": None}, "told.reward: 'latency' .* one that needs no devices"),
    ("eval.sweeps.told.conditions", [None, 3], "told.conditions: 3 .*: for rl/told: 1, 2, 4, 8, 16 devices"),
])  # fmt: skip
def test_only_a_model_that_knows_the_word_is_asked_for_devices(path, value, said):
    values = deepcopy(FULL)
    values["grammar"]["devices"], values["rl"]["policies"]["told"] = True, DEVICES
    values["traces"]["methods"]["apr"]["devices_share"] = 0.3
    values["eval"]["sweeps"]["told"] = {"models": ["told"], "stages": ["rl"], "conditions": [None, 1, 16],
                                        "temperatures": [0.0]}  # fmt: skip
    params = parse_params(values)
    assert params.condition_kind("apr", 1) == "children" == params.condition_kind("apr", 1, "apr")
    assert params.condition_kind("apr", 1, "told") == "devices" and params.rl.policies["told"].amount is None
    section = values
    for key in path.split(".")[:-1]:
        section = section[key]
    section[path.split(".")[-1]] = value
    with pytest.raises(ParamsError, match=said) as error:
        parse_params(values)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_valid(preset: Path):
    load_params(ROOT / "params.yaml", preset)


def test_partial_params_keep_their_types():
    params = load_params(ROOT / "params.yaml")
    values = params.model_dump(mode="json")
    partial = partial_params({"problems": values["problems"], "rl": {"policies": values["rl"]["policies"]}})
    assert partial.problems == params.problems
    assert partial.rl.policies == params.rl.policies


def test_parameters_whole_or_partial_go_to_other_processes():
    params = load_params(ROOT / "params.yaml")
    values = params.model_dump(mode="json")
    partial = partial_params({"task": "countdown", "seed": 3, "problems": {"numbers": 5, "max_value": None},
                              "traces": {"methods": values["traces"]["methods"]}})  # fmt: skip
    again, part = pickle.loads(pickle.dumps(params)), pickle.loads(pickle.dumps(partial))
    assert again == params and again.traces.methods["apr"].spawns == 10
    assert (part.problems.numbers, part.traces.methods) == (5, params.traces.methods)
    with pytest.raises(AttributeError):
        part.problems.train  # noqa: B018


ODD = [True, "x", "", "1", 3.0, -0.5, float("inf"), float("nan"), None, -1, 10**30, 10**5000, [], [None], {},
       {1: 2}, b"x"]  # fmt: skip


def places(values, path=()):
    """Every key of nested mappings, and every place of their lists."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def changed(path, value):
    values = deepcopy(FULL)
    section = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return values


@pytest.mark.parametrize("odd", ODD, ids=lambda value: repr(value) if value != 10**5000 else "10**5000")
def test_whatever_stands_anywhere_is_of_its_type_or_refused_in_one_line(odd):
    for path in places(FULL):
        try:
            parse_params(changed(path, odd))
        except ParamsError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 500
            continue
        before = FULL
        for key in path:
            before = before[key]
        assert odd in (None, {}, []) or type(odd) in (type(before), str) or type(before) is float, (path, odd)


@pytest.mark.parametrize("name", ["a", "kl-0_01", "x" * 19, "xy" * 10 + "z" * 19, "nullable", "com"])
def test_names(name):
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "sos 2", "sos;touch x", "$(x)", "a/b", "..", ".a", "a.b", "a{b}", 'a"b', "a'b", "-a", "_a", "1",
     "1e3", "Sos", "größe", "a\n", "a\x00", "a*", "a|b", "a=b", "a,b", "a:b", "~", "null", "true", "off",
     "infinity", "recipe", "default", "con", "com1", "x" * 65, "x" * 20, "a" + "-_9" * 20],
)  # fmt: skip
@pytest.mark.parametrize("section, key", [("rl", "policies"), ("traces", "methods"), ("eval", "sweeps"),
                                          ("sft", "tokens")])  # fmt: skip
def test_what_is_no_name_is_refused(section, key, name):
    some = next(iter(FULL[section][key].values()))
    with pytest.raises(ParamsError, match=r"params: \S+.* is not allowed; allowed: 1 to 64 of a-z") as error:
        parse_params(changed((section, key), FULL[section][key] | {name: some}))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "path, value, said",
    [
        ("eval.sweeps.children.models", ["apr", "apr"], "each only once"),
        ("eval.sweeps.children.temperatures", [0.0, -0.0], "each only once"),
        ("eval.sweeps.children.temperatures", [1e-300], "0, greedy, or 0.001 to 100"),
        ("eval.sweeps.children.conditions", [None, 11], "for sft/apr: 0 to 10 children"),
        ("eval.sweeps.window.conditions", [0], "for sft/sos_plus: 1 to 2147483647 tokens"),
        ("eval.sweeps.window.stages", [], "at least 1 item"),
        ("rl.policies.apr_max.children", 11, "at most grammar.max_children"),
        ("rl.policies.sos_plus.children", 1, "with a method that spawns"),
        ("traces.methods", {}, "at least 1 item"),
        ("engine.device", "cuda;touch x", "String should match"),
        ("engine.accelerate", "a b.yaml", "String should match"),
        ("engine.endpoints", ["localhost:8000"], "String should match"),
    ],
)
def test_what_could_not_run_is_refused(path, value, said):
    with pytest.raises(ParamsError, match=path.replace(".", r"\.") + ".* is not allowed") as error:
        parse_params(changed(path.split("."), value))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "content, said",
    [
        ("größe: 1".encode("latin-1"), "not a text in UTF-8"),
        ("seed: 1".encode("utf-16"), "not a text in UTF-8"),
        ("seed: 1".encode("utf-16-le"), "not valid YAML"),
        (b"", "expected sections, found NoneType"),
        (b"# nothing", "expected sections, found NoneType"),
        (b"- seed: 1", "expected sections, found list"),
        (b"seed", "expected sections, found str"),
        (b"seed: 1\nseed: 2", "line 2: found duplicate key"),
        (b"seed: *a", "undefined alias"),
        (b"seed: !!python/object:os.system {}", "could not determine a constructor"),
        (b"--- {seed: 1}\n--- {seed: 2}", "but found another document"),
        (b"seed: " + b"9" * 5000, "not valid YAML"),
        (b"seed: 0x" + b"f" * 5000, "seed: an endless number is not allowed"),
        (b"seed: 2001-13-45", "not valid YAML"),
        (b"seed: 2001-10-15", "seed: datetime.date"),
        (b"seed: " + b"[" * 1500, "not valid YAML"),
        (b"seed: !!binary aGVsbG8=", "seed: b'hello' is not allowed"),
        (b"seed: &a [*a]", "seed: [[...]] is not allowed"),
        (b"a: &a [x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (b, b, b",".join([b"*%c" % (b - 1)] * 8)) for b in range(98, 115)
        ) + b"seed: *r", "seed: [[...], [...]"),
        (b"? [a, b]\n: 1", "not allowed"),
        (b"'a\\nb': 1", "unknown key"),
        (b'"a\\nb\\u2028c": 1', r"a\nb\u2028c: unknown key"),
        (b"true: 1", "True"),
    ],
)  # fmt: skip
def test_files_that_are_no_parameters_are_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError) as error:
        load_params(ROOT / "params.yaml", path)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 500


def test_what_yaml_can_say_otherwise_is_the_same(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(codecs.BOM_UTF8 + b"""
sft: &sft {learning_rate: 1e-5, weight_decay: 1}
rl: {policies: {apr: &apr {kl: 1}, again: {<<: *apr, method: apr, steps: 3}}}
""")
    params = load_params(ROOT / "params.yaml", path)
    assert (params.sft.learning_rate, params.sft.weight_decay) == (1e-5, 1.0)
    assert params.rl.policies["again"].kl == params.rl.policies["apr"].kl == 1.0


def test_something_is_evaluated(tmp_path):
    (tmp_path / "params.yaml").write_text(json.dumps(changed(("eval", "sweeps"), {})))
    with pytest.raises(ParamsError, match=r"params.yaml: eval.sweeps: \{\} is not allowed"):
        load_params(tmp_path / "params.yaml")


def test_a_directory_and_an_alias_in_its_own_anchor(tmp_path):
    with pytest.raises(ParamsError, match="not readable"):
        load_params(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text("rl: &rl {policies: *rl}")
    with pytest.raises(ParamsError, match="a section that holds itself"):
        load_params(path, path)


@pytest.mark.parametrize("key", ["sft.base", "engine.accelerate"])
def test_files_that_parameters_name_are_there(tmp_path, key):
    values, path = deepcopy(FULL), tmp_path / "params.yaml"
    (tmp_path / "pretrained/empty").mkdir(parents=True)
    (tmp_path / "pretrained/file").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/config.json").touch()
    (tmp_path / "pretrained/loop").symlink_to("loop")
    section, name = key.split(".")
    for odd in (".", "..", "", "/", "~", str(tmp_path / "outside"), "outside", "pretrained", "a\0b",
                "pretrained/empty", "pretrained/..", "pretrained/../outside", "pretrained/loop",
                "pretrained/file/x", "pretrained/no"):  # fmt: skip
        values[section][name] = odd
        path.write_text(json.dumps(values))
        with pytest.raises(ParamsError, match=rf"params\.yaml: {key}: .* is not allowed") as error:
            load_params(path)
        assert len(str(error.value).splitlines()) == 1
    (tmp_path / "pretrained/model").symlink_to("../outside")
    values["sft"]["base"], values["engine"]["accelerate"] = "./pretrained//model/", "pretrained/file"
    path.write_text(json.dumps(values))
    assert load_params(path).sft.base == "pretrained/model"
