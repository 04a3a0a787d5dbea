"""A real vLLM on the CPU decodes what this engine decodes: evaluations, ten steps of RL, and what goes wrong.

    make real

Not collected by `make test`: it takes some minutes, and 3 GB below `.venv/vllm`.
"""

import json
import shutil
import time
from contextlib import ExitStack
from threading import Thread

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from apr.core.errors import ServerError
from apr.core.params import RolloutServers, Sweep, load_params
from apr.engine.checkpoint import load_model
from apr.engine.servers.endpoints import load_weights
from apr.engine.servers.protocols import wire_of
from apr.evaluation.sweep import evaluate
from apr.language.tokenizer import load_language
from apr.rollouts.decoding import connect, open_decoder, orchestrate, prompt_of
from apr.rollouts.rollout import Request
from apr.tasks import open_task
from apr.tasks.problems import make_problems, read_problems
from apr.training.rl.log import read_log
from apr.training.rl.sampling import Sampler
from apr.training.rl.servers import ServedPolicy
from apr.training.rl.train import train_rl
from tests.real.server import ROOT, Vllm

MODEL, SERIAL = ROOT / "models/rl/apr", ROOT / "models/sft/sos_plus"
PARALLEL_PROBLEMS, SERIAL_PROBLEMS = 12, 300
EXACT = 2e-5


def changed(params, section, **values):
    return params.model_copy(update={section: getattr(params, section).model_copy(update=values)})


@pytest.fixture(scope="module")
def params():
    params = load_params(ROOT / "params.yaml")
    params = changed(params, "engine", slots=64, timeout=600.0)  # two cores, and whatever else they do
    params = changed(params, "problems", train=60, validation=8, test=SERIAL_PROBLEMS)
    sweeps = {name: Sweep(models=["sos_plus"], temperatures=[temperature])
              for name, temperature in (("greedy", 0.0), ("sampled", 1.0))}  # fmt: skip
    return changed(params, "eval", problems=SERIAL_PROBLEMS, sweeps=sweeps)


@pytest.fixture(scope="module")
def problems(params, tmp_path_factory):
    make_problems(params, out := tmp_path_factory.mktemp("data") / "problems")
    return out


@pytest.fixture(scope="module")
def language():
    return load_language(MODEL)


def untied(checkpoint, out):
    """Returns a copy with an output layer of its own. That of tied embeddings vLLM 0.32 packs for a CPU once,
    and keeps when weights are loaded again."""
    shutil.copytree(checkpoint, out)
    weights, config = load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return untied(MODEL, tmp_path_factory.mktemp("models") / "apr")


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return untied(SERIAL, tmp_path_factory.mktemp("models") / "sos_plus")


@pytest.fixture(scope="module")
def vllm(model, tmp_path_factory):
    with Vllm(model, tmp_path_factory.mktemp("vllm") / "log.txt") as server:
        yield server


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """Two servers of the same model."""
    folder = tmp_path_factory.mktemp("replicas")
    with ExitStack() as running:
        servers = [Vllm(SERIAL, folder / f"{name}.txt") for name in ("first", "second")]
        for server in servers:
            server.begin()
            running.callback(server.kill)
        for server in servers:
            server.wait()
        yield servers


def by(params, *servers):
    """`params` whose evaluations are decoded by these servers."""
    return changed(params, "engine", backend="vllm", endpoints=[server.url for server in servers])


def requests_of(task, problems, temperature):
    return [Request(f"{problem.id}/0", prompt_of(task, problem, None), temperature, 0)
            for problem in problems]  # fmt: skip


def twice(params, server, language, temperature, problems):
    """Rollouts of the first problems, by the engine and by the server."""
    task = open_task(params, language)
    chosen = read_problems(task, problems / "test.parquet")[:PARALLEL_PROBLEMS]
    return [decoded(each, language, temperature, chosen) for each in (params, by(params, server))]


def decoded(params, language, temperature, problems):
    with open_decoder(params, language, MODEL) as decoder:
        requests = requests_of(open_task(params, language), problems, temperature)
        return orchestrate(params, language, decoder).run(requests)


def tokens(rollouts):
    return [[thread.ids for thread in rollout.threads] for rollout in rollouts]


def plain_gap(model, rollouts):
    """The largest difference of a log-probability from a float64 pass without a cache."""
    gaps = []
    for thread in (thread for rollout in rollouts for thread in rollout.threads if any(thread.sampled)):
        ids = torch.tensor(thread.ids)
        with torch.no_grad():
            scores = model(ids[None], use_cache=False, position_ids=torch.arange(len(ids))[None]).logits[0]
        found = scores.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        sampled, said = torch.tensor(thread.sampled), torch.tensor(thread.logprobs, dtype=torch.float64)
        gaps.append((said[sampled] - found[sampled[1:]]).abs().max())
    return float(max(gaps))


def test_greedy_rollouts_are_the_engines(vllm, params, problems, language):
    here, there = twice(params, vllm, language, 0.0, problems)
    assert tokens(here) == tokens(there)
    print(f"greedy: {len(there)} rollouts, {sum(len(each.threads) for each in there)} threads, equal tokens")


def test_sampled_log_probabilities_are_the_truth(vllm, params, problems, language):
    _, there = twice(params, vllm, language, 1.0, problems)
    gap = plain_gap(load_model(MODEL, "cpu").double(), there)
    print(f"sampled: {len(there)} rollouts, log-probabilities within {gap:.1e}")
    assert gap < EXACT


def swept(params, problems, out, *sweeps):
    """The evaluation of the serial model at these sweeps: accuracy, and all that it holds."""
    params = changed(params, "eval", sweeps={name: params.eval.sweeps[name] for name in sweeps})
    evaluate(params, "sos_plus", "sft", problems / "test.parquet", SERIAL, out)
    table = pq.read_table(out)
    return sum(table["strict"].to_pylist()) / len(table), table


def test_sampled_accuracy_is_within_the_interval(replicas, params, problems, tmp_path):
    here, _ = swept(params, problems, tmp_path / "here.parquet", "sampled")
    there, table = swept(by(params, *replicas), problems, tmp_path / "there.parquet", "sampled")
    spread = 1.96 * sum(share * (1 - share) / len(table) for share in (here, there)) ** 0.5
    print(f"sampled: {len(table)} rollouts, accuracy {there:.3f}, engine {here:.3f}, interval {spread:.3f}; "
          f"answers by replica: {[server.answers() for server in replicas]}")  # fmt: skip
    assert abs(here - there) <= spread


def test_kills_and_restarts_in_the_middle_of_a_sweep(replicas, params, problems, tmp_path):
    """Of two replicas one is lost, and started again; then the only one is lost, and started again."""
    first, second = replicas
    _, expected = swept(params, problems, out := tmp_path / "out.parquet", "greedy")
    out.unlink()

    def kill(server, more, again):
        until = server.answers() + more
        while server.answers() < until:
            time.sleep(0.05)
        server.kill()
        if again:
            server.begin()

    before = second.answers()
    (killer := Thread(target=kill, args=(second, 10, True), daemon=True)).start()
    _, found = swept(by(params, first, second), problems, out, "greedy")
    killer.join()
    assert found.equals(expected)
    print(f"one of two killed after 10 answers, and started again: {len(found)} equal rollouts, "
          f"{second.answers() - before} of them by this one")  # fmt: skip
    out.unlink()

    (killer := Thread(target=kill, args=(first, 10, False), daemon=True)).start()
    with pytest.raises(ServerError) as error:
        swept(by(params, first), problems, out, "greedy")
    killer.join()
    print(f"the only one killed: {error.value}")
    assert f"no server is left ({first.url}" in str(error.value) and not out.exists()

    first.begin()
    first.wait()
    _, found = swept(by(params, first), problems, out, "greedy")
    assert found.equals(expected)
    print(f"and started again: {len(found)} equal rollouts")


def test_a_window_that_is_too_small_is_said(params, problems, tmp_path):
    test, out = problems / "test.parquet", tmp_path / "out.parquet"
    with Vllm(SERIAL, tmp_path / "log.txt", window=64) as small, pytest.raises(ServerError) as error:
        evaluate(by(params, small), "sos_plus", "sft", test, SERIAL, out)
    print(f"window: {error.value}")
    assert "refused a request (400" in str(error.value) and "64" in str(error.value)
    assert not out.exists()


def test_weights_of_another_model_are_refused(vllm, model, serial, params, problems, language, tmp_path):
    task = open_task(params, language)
    requests = requests_of(task, read_problems(task, problems / "test.parquet")[:2], 0.0)

    def decode(version):
        with connect(params, language, [vllm.url], wire_of("vllm", "apr", version)) as decoder:
            return orchestrate(params, language, decoder).run(requests)

    load_weights("vllm", [vllm.url], serial, "other", 60.0)
    with pytest.raises(ServerError, match="decoded by weights other instead of ours"):
        decode("ours")
    with pytest.raises(ServerError, match="did not load weights"):
        load_weights("vllm", [vllm.url], tmp_path / "nowhere", "ours", 60.0)
    load_weights("vllm", [vllm.url], model, "ours", 60.0)
    with open_decoder(params, language, MODEL) as decoder:
        expected = orchestrate(params, language, decoder).run(requests)
    assert tokens(decode("ours")) == tokens(expected)


def test_ten_steps_of_rl_are_those_in_process(vllm, model, params, problems, tmp_path, monkeypatch):
    """Every step: greedy rollouts by the weights of the step, there and here, have the same tokens and so the
    same rewards; what was sampled there is scored by the trainer here (`mismatch`)."""
    servers = RolloutServers(backend="vllm", endpoints=[vllm.url])
    policy = params.rl.policies["apr"].model_copy(update={"children": 2, "steps": 10})
    params = changed(params, "rl", policies={"apr": policy}, prompts=2, group=4, servers=servers)
    decode, create, samplers, equal = ServedPolicy.decode, Sampler.__init__, [], []

    def created(self, *given, **named):
        create(self, *given, **named)
        samplers.append(self)

    def compared(self, requests, trainer):
        found = decode(self, requests, trainer)
        greedy = [request._replace(temperature=0.0) for request in requests[:: params.rl.group]]
        there, here = decode(self, greedy, trainer), samplers[0].decode(greedy, trainer.whole())
        equal.append(tokens(there) == tokens(here))
        return found

    monkeypatch.setattr(Sampler, "__init__", created)
    monkeypatch.setattr(ServedPolicy, "decode", compared)
    splits = (problems / f"{name}.parquet" for name in ("train", "validation"))
    train_rl(params, "apr", *splits, model, tmp_path / "rl")
    lines = read_log(tmp_path / "rl/log.jsonl")
    print("RL:", json.dumps([{name: line[name] for name in ("step", "reward", "mismatch", "mismatch_kl")}
                             for line in lines]))  # fmt: skip
    assert equal == [True] * 10 and len(lines) == 10
    assert max(line["mismatch"] or 0.0 for line in lines) < 2 * EXACT  # each is within EXACT of the truth
