"""What servers of models are sent and what they answer: the formats of vLLM and SGLang, and new weights."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from apr.core.errors import ServerError
from apr.engine.interface import Sampling

Json = dict[str, Any]


class Wire(Protocol):
    """The request and the answer of one kind of server."""

    @property
    def path(self) -> str:
        """Of the URL."""

    def body(self, ids: list[int], sampling: Sampling, count: int, seed: int, stop: list[int]) -> Json:
        """Asks for up to `count` tokens after `ids`."""

    def answer(self, payload: Any) -> tuple[list[int], list[float], str, int]:
        """Tokens, log-probabilities, "stop" or "length", and the length of the prompt that was decoded from.

        Raises `KeyError`, `TypeError`, `IndexError` or `ValueError` if something is missing.
        """


@dataclass(frozen=True)
class VllmWire:
    """vLLM's completions, started with `--logprobs-mode processed_logprobs`."""

    model: str
    path: str = "/v1/completions"

    def body(self, ids: list[int], sampling: Sampling, count: int, seed: int, stop: list[int]) -> Json:
        return {"model": self.model, "prompt": ids, "max_tokens": count, "temperature": sampling.temperature,
                "seed": seed, "stop_token_ids": stop, "ignore_eos": True, "logprobs": 0,
                "return_token_ids": True, "skip_special_tokens": False}  # fmt: skip

    def answer(self, payload: Any) -> tuple[list[int], list[float], str, int]:
        (choice,) = payload["choices"]
        logprobs = choice["logprobs"]["token_logprobs"]
        return choice["token_ids"], logprobs, choice["finish_reason"], len(choice["prompt_token_ids"])


@dataclass(frozen=True)
class SglangWire:
    """SGLang's own `generate`. With the `version` of `load_weights`, answers by other weights are faults."""

    version: str | None = None
    path: str = "/generate"

    def body(self, ids: list[int], sampling: Sampling, count: int, seed: int, stop: list[int]) -> Json:
        settings = {"temperature": sampling.temperature, "max_new_tokens": count, "stop_token_ids": stop,
                    "no_stop_trim": True, "ignore_eos": True, "skip_special_tokens": False,
                    "sampling_seed": seed}  # fmt: skip
        return {"input_ids": ids, "sampling_params": settings, "return_logprob": True}

    def answer(self, payload: Any) -> tuple[list[int], list[float], str, int]:
        about = payload["meta_info"]
        if self.version is not None and about["weight_version"] != self.version:
            raise ValueError(f"decoded by weights {about['weight_version']} instead of {self.version}")
        logprobs = [entry[0] for entry in about["output_token_logprobs"]]
        return payload["output_ids"], logprobs, about["finish_reason"]["type"], about["prompt_tokens"]


def wire_of(backend: str, served_model: str, version: str | None = None) -> Wire:
    """Of the backends "vllm" and "sglang"; only the latter names versions of weights."""
    return VllmWire(served_model) if backend == "vllm" else SglangWire(version)


def load_weights(endpoints: Sequence[str], directory: Path, version: str, timeout: float) -> None:
    """Has SGLang servers take the checkpoint in `directory`, which they see under the same path, and forget
    what they have cached. Raises `ServerError` unless all of them have done so."""
    body = {"model_path": str(directory.resolve()), "weight_version": version, "flush_cache": True}

    def load(client: httpx.Client, url: str) -> str:
        try:
            done = client.post(url.rstrip("/") + "/update_weights_from_disk", json=body).json()
            return "" if done.get("success") is True else str(done.get("message", done))
        except (httpx.HTTPError, ValueError, AttributeError) as error:
            return f"{type(error).__name__} {error}"

    transport = httpx.HTTPTransport(retries=3)
    with httpx.Client(timeout=timeout, transport=transport) as client, ThreadPoolExecutor() as pool:
        for url, fault in zip(endpoints, pool.map(lambda url: load(client, url), endpoints), strict=True):
            if fault:
                raise ServerError(f"{url}: did not load weights ({fault[:200]})")
