"""What is published of a run: folders with cards that the Hub's own libraries read, and nothing else."""

import json
import shutil

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from apr.cli.main import main
from apr.cli.publish import PARALLEL, SERIAL
from apr.core.errors import DataError, ParamsError
from apr.core.files import read_json
from apr.core.hashes import hash_file
from apr.core.params import load_params
from apr.pipeline.plan import load_scale
from apr.results.publish import publish
from apr.tasks import open_task
from apr.tasks.problems import read_problems
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def folders(made, tmp_path_factory):
    """Everything of a run, published."""
    out = tmp_path_factory.mktemp("published")
    made.run("python", "-m", "apr", "publish", "--to", str(out))
    return out


def test_there_is_a_folder_with_a_card_for_each_and_nothing_else(made, folders):
    params = load_scale("default", made.path)
    cards = {str(path.parent.relative_to(folders)) for path in folders.rglob("README.md")}
    models = {f"models/sft/{method}" for method in params.traces.methods}
    models |= {f"models/rl/{policy}" for policy in params.rl.policies}
    assert cards == models | {"datasets/countdown", "spaces/demo"}
    for card in cards:
        text = (folders / card / "README.md").read_text()
        assert "arxiv:2504.15466" in text and "https://arxiv.org/abs/2504.15466" in text
        assert "{{" not in text and "{%" not in text
    assert {path.name for path in (folders / "spaces/demo").iterdir()} == {"README.md", "index.html"}
    index = folders / "spaces/demo/index.html"
    assert index.read_bytes() == (made.path / "data/demo.html").read_bytes()


@pytest.mark.parametrize("model", ["rl/apr", "sft/sos", "sft/sos_plus"])
def test_a_model_is_loaded_as_it_lies_there_and_its_card_has_its_results(made, folders, model):
    folder, (phase, name) = folders / "models" / model, model.split("/")
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    params = load_params(folder / "params.json")
    assert params == load_scale("default", made.path)
    vocabulary = open_task(params).language.vocabulary
    text = "<root> 27 :0 3 5 9 go"
    assert tokenizer.encode(text) == vocabulary.encode(text)
    assert loaded.get_input_embeddings().weight.shape[0] == vocabulary.size
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "text-generation"
    metrics = read_json(made.path / "results/metrics.json")
    found = {result.metric_name.split(", ")[1]: result.metric_value for result in card.data.eval_results}
    assert found["T = 0"] == round(100 * metrics[f"{phase}_{name}_accuracy_greedy"], 1)
    assert all("95 % interval" in result.metric_name for result in card.data.eval_results)
    assert f"apr {model}" in card.text and "6 x 1" in card.text
    assert ("decides for itself when to spawn" in card.text) == (name == "apr")
    assert ("By GRPO" in card.text) == (phase == "rl")


def test_data_are_loaded_as_their_card_says(made, folders, tmp_path):
    folder = folders / "datasets/countdown"
    card = DatasetCard.load(folder / "README.md")
    params = load_scale("default", made.path)
    assert [its["config_name"] for its in card.data.configs] == [
        "problems", *(f"traces_{method}" for method in params.traces.methods)]  # fmt: skip
    data = load_dataset(str(folder), "problems", cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 300, "validation": 20, "test": 30}
    problems = read_problems(open_task(params), made.path / "data/problems/test.parquet")
    assert [(row["problem_id"], tuple(row["numbers"])) for row in data["test"]] == [
        (problem.id, problem.numbers) for problem in problems]  # fmt: skip
    traces = load_dataset(str(folder), "traces_apr", cache_dir=str(tmp_path))["train"]
    assert "token_ids" in traces.column_names and f"| {len(traces):,} |" in card.text


def test_only_what_is_asked_for(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made.path)
    assert main(["publish", "--to", str(tmp_path), "--only", "rl/apr"]) == 0
    assert [path.parent for path in tmp_path.rglob("README.md")] == [tmp_path / "models/rl/apr"]
    assert not list(tmp_path.rglob(".*"))
    with pytest.raises(ParamsError, match="--only: 'rl/none' is not allowed; allowed: rl/apr, rl/apr_max"):
        publish(load_scale("default", made.path), made.path, tmp_path, ["rl/none"])


@pytest.mark.parametrize("path", ["data/models/rl/apr/model.safetensors", "results/metrics.json"])
def test_what_is_not_what_the_results_say_is_refused(made, tmp_path, path):
    for folder in ("data", "results"):
        shutil.copytree(made.path / folder, tmp_path / folder)
    text = (tmp_path / path).read_bytes()
    if path.endswith("json"):
        values = json.loads(text)
        values["rl_apr_accuracy_greedy"] += 0.01
        (tmp_path / path).write_text(json.dumps(values))
    else:
        (tmp_path / path).write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    params = load_scale("default", made.path)
    with pytest.raises(DataError, match="not the file of the run in|evaluated was"):
        publish(params, tmp_path, tmp_path / "out", ["rl/apr"])
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.skipif(not (ROOT / "models").is_dir(), reason="no trained models in models/")
@pytest.mark.parametrize("model", (PARALLEL, SERIAL))
def test_the_models_of_this_repository_are_those_of_its_results(model):
    folder, run = ROOT / "models" / model, read_json(ROOT / "results/run.json")
    wanted = run["jobs"][model]["outputs"]
    for path in folder.iterdir():
        if path.name not in ("README.md", "params.json"):
            assert wanted[f"data/models/{model}/{path.name}"] == hash_file(path), path
    assert load_params(folder / "params.json") == load_params(ROOT / "params.yaml")
    accuracy = read_json(ROOT / "results/metrics.json")[f"{model.replace('/', '_')}_accuracy_greedy"]
    assert ModelCard.load(folder / "README.md").data.eval_results[0].metric_value == round(100 * accuracy, 1)
