"""RL whose rollouts are decoded by real servers: by the weights of the step, or not at all."""

import json

import httpx
import pytest
import torch

from apr.core.errors import ServerError
from apr.core.params import Lora, RolloutServers
from apr.engine.checkpoint import load_model
from apr.engine.interface import Sampling
from apr.engine.servers.endpoints import load_weights
from apr.engine.servers.protocols import wire_of
from apr.engine.servers.remote import RemoteDecoder
from apr.training.rl.servers import ServedPolicy
from apr.training.rl.train import run_identity, train_rl


def served_by(params, *urls, backend="sglang", **changes):
    servers = RolloutServers(backend=backend, endpoints=list(urls))
    return params.model_copy(update={"rl": params.rl.model_copy(update={"servers": servers} | changes)})


def plain_logprobs(model, thread):
    """Of the sampled tokens of a thread, by a forward pass without a cache."""
    with torch.no_grad():
        places = torch.arange(len(thread.ids))[None]
        scores = model(torch.tensor([thread.ids]), position_ids=places).logits.log_softmax(-1)
    found = scores[0, :-1].gather(1, torch.tensor(thread.ids)[1:, None])[:, 0]
    return found[torch.tensor(thread.sampled)[1:]]


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)], ids=["full", "lora"])
def test_every_step_is_decoded_by_its_own_weights(
    lora, serve, params, problems, validation, checkpoint, tmp_path, monkeypatch
):
    one, two = serve(), serve()
    changed = served_by(params, one.url, two.url, lora=lora, learning_rate=0.5, max_grad_norm=0.5)
    decode, before = ServedPolicy.decode, load_model(checkpoint, "cpu")
    gaps = []

    def checked(self, requests, trainer):
        found = decode(self, requests, trainer)
        trainer.model.eval()
        for thread in (thread for rollout in found for thread in rollout.threads if any(thread.sampled)):
            now, then = (plain_logprobs(model, thread) for model in (trainer.model, before))
            said = torch.tensor(thread.logprobs)[torch.tensor(thread.sampled)]
            gaps.append((trainer.state.global_step, (said - now).abs().max(), (said - then).abs().max()))
        trainer.model.train()
        return found

    monkeypatch.setattr(ServedPolicy, "decode", checked)
    train_rl(changed, "apr", problems, validation, checkpoint, tmp_path / "rl")
    assert {step for step, _, _ in gaps} == {0, params.rl.inner_updates}
    assert max(now for _, now, _ in gaps) < 1e-4
    assert max(then for step, _, then in gaps if step) > 1e-2, "the weights have moved"
    assert one.batches.version == two.batches.version != "default"
    lines = [json.loads(line) for line in (tmp_path / "rl/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl", "rl.seconds.jsonl"]


def test_answers_by_other_weights_are_a_fault(serve, language):
    server, size = serve(), language.vocabulary.size

    def decode(version):
        wire = wire_of("sglang", "", version)
        with RemoteDecoder([server.url], wire, language.syntax.stop_ids, size, 2, retries=0) as decoder:
            decoder.open(0, [1, 2], Sampling(0.0, 0), 3)
            return decoder.step()

    assert len(decode("default")) == 1
    with pytest.raises(ServerError, match="no server is left .*decoded by weights default instead of next"):
        decode("next")


def test_a_server_keeps_its_weights_if_it_cannot_load_others(serve, checkpoint, tmp_path):
    server = serve()
    with pytest.raises(ServerError, match="did not load weights .*no such checkpoint directory"):
        load_weights("sglang", [server.url], tmp_path / "nothing", "next", 5.0)
    with pytest.raises(ServerError, match="ConnectError"):
        load_weights("sglang", ["http://127.0.0.1:9"], checkpoint, "next", 1.0)
    assert server.batches.version == "default"
    load_weights("sglang", [server.url, server.url], checkpoint, "next", 5.0)
    body = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 1}}
    assert httpx.post(server.url + "/generate", json=body).json()["meta_info"]["weight_version"] == "next"


def test_an_answer_of_vllm_names_its_weights():
    """One of vLLM 0.32's, without what nobody reads; the server itself is in tests/real."""
    choice = {"finish_reason": "stop", "token_ids": [7, 3],
              "weight_versions": [{"version": "next", "start": 0, "end": 2}],
              "logprobs": {"content": [{"logprob": -0.5}, {"logprob": 0.0}]}}  # fmt: skip
    answer = {"prompt_token_ids": [5, 6, 2], "choices": [choice]}
    assert wire_of("vllm", "apr", "next").answer(answer) == ([7, 3], [-0.5, 0.0], "stop", 3)
    choice["weight_versions"].append({"version": "default", "start": 1, "end": 2})
    with pytest.raises(ValueError, match="decoded by weights next and default instead of next"):
        wire_of("vllm", "apr", "next").answer(answer)


def test_a_run_goes_on_with_servers_elsewhere(params, problems, checkpoint):
    one, other = (served_by(params, f"http://{host}:8000", backend="vllm") for host in ("host", "other"))
    identities = [run_identity(each, "apr", [problems], checkpoint) for each in (one, other)]
    assert identities[0] == identities[1]
