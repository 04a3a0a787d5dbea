"""What servers of models are sent and what they answer: the formats of vLLM and SGLang, from both ends.

A wire is the client's end; a body, the server's, is what a client may ask for. It is read strictly, and
refused unless the engine does all that it says: options that there are not are allowed where they are off.
"""

from dataclasses import dataclass
from functools import partial
from secrets import randbits
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException

from apr.engine.interface import Sampling, Segment

Json = dict[str, Any]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)] | None
Thread = tuple[list[int], Sampling, int]
"""Prompt, sampling and limit, as in `Decoder.open`."""
GREEDY = 1e-5
"""Both servers take a lower temperature for 0."""
OPTIONS: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "stream": (False,), "stream_options": (), "stop": ([],),
    "top_p": (1,), "top_k": (-1, 0), "min_p": (0,), "min_tokens": (0,), "min_new_tokens": (0,), "suffix": (),
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "logit_bias": ({},),
    "ignore_eos": (False, True), "return_token_ids": (True,), "skip_special_tokens": (False, True),
    "no_stop_trim": (True,), "return_logprob": (False, True), "logprobs": (0,), "top_logprobs_num": (0,),
    "flush_cache": (False, True), "abort_all_requests": (False,), "load_format": (),
}  # fmt: skip
"""Values that ask for nothing but what is done anyway; so does null."""


@dataclass(frozen=True)
class VllmWire:
    """vLLM's completions, started with `--logprobs-mode processed_logprobs`."""

    model: str
    path: str = "/v1/completions"

    def body(self, ids: list[int], sampling: Sampling, count: int, seed: int, stop: list[int]) -> Json:
        """Asks for up to `count` tokens after `ids`."""
        return {"model": self.model, "prompt": ids, "max_tokens": count, "temperature": sampling.temperature,
                "seed": seed, "stop_token_ids": stop, "ignore_eos": True, "logprobs": 0,
                "return_token_ids": True, "skip_special_tokens": False}  # fmt: skip

    def answer(self, payload: Any) -> tuple[list[int], list[float], str, int]:
        """Tokens, log-probabilities, "stop" or "length", and the length of the prompt that was decoded from.

        Raises `KeyError`, `TypeError`, `IndexError` or `ValueError` if something is missing.
        """
        (choice,) = payload["choices"]
        logprobs = choice["logprobs"]["token_logprobs"]
        return choice["token_ids"], logprobs, choice["finish_reason"], len(choice["prompt_token_ids"])


@dataclass(frozen=True)
class VllmTokensWire:
    """vLLM's token ids in and out, started with `--enable-scale-out` too. Answers by other weights than the
    `version` of `load_weights` are faults."""

    model: str
    version: str
    path: str = "/inference/v1/generate"

    def body(self, ids: list[int], sampling: Sampling, count: int, seed: int, stop: list[int]) -> Json:
        settings = {"temperature": sampling.temperature, "max_tokens": count, "seed": seed,
                    "stop_token_ids": stop, "ignore_eos": True, "logprobs": 0}  # fmt: skip
        return {"model": self.model, "token_ids": ids, "sampling_params": settings, "return_token_ids": True}

    def answer(self, payload: Any) -> tuple[list[int], list[float], str, int]:
        (choice,) = payload["choices"]
        _require_version([span["version"] for span in choice["weight_versions"]], self.version)
        logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        return choice["token_ids"], logprobs, choice["finish_reason"], len(payload["prompt_token_ids"])


def _require_version(found: list[str], expected: str | None) -> None:
    if expected is not None and found != [expected]:
        raise ValueError(f"decoded by weights {' and '.join(found)} instead of {expected}")


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
        _require_version([about["weight_version"]], self.version)
        logprobs = [entry[0] for entry in about["output_token_logprobs"]]
        return payload["output_ids"], logprobs, about["finish_reason"]["type"], about["prompt_tokens"]


Wire = VllmWire | VllmTokensWire | SglangWire


def wire_of(backend: str, served_model: str, version: str | None = None) -> Wire:
    """Returns the wire of the backend "vllm" or "sglang", which holds answers to a `version` of weights."""
    if backend == "sglang":
        return SglangWire(version)
    return VllmWire(served_model) if version is None else VllmTokensWire(served_model, version)


Refused = partial(HTTPException, 400)


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Returns what the JSON object `raw` asks for. Raises `HTTPException`, of one line, if it is none."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            value = "" if first["type"] in ("missing", "json_invalid") else f" {first['input']!r:.60}"
            raise Refused(f"{key or 'the body'}{value}: {first['msg']}") from None

    @model_validator(mode="after")
    def _options(self) -> "Body":
        for key, value in (self.model_extra or {}).items():
            if key not in OPTIONS:
                raise Refused(f"{key}: unknown key")
            same = (value == off and isinstance(value, bool) == isinstance(off, bool) for off in OPTIONS[key])
            if value is not None and not any(same):
                raise Refused(f"{key}: {value!r:.60} is not supported; allowed: {[*OPTIONS[key], None]}")
        return self


class Completion(Body):
    path: ClassVar[str] = "/v1/completions"
    prompt: list[int]
    max_tokens: int
    temperature: Annotated[float, Field(ge=0)] = 1.0
    seed: Seed = None
    stop_token_ids: list[int] | None = None
    model: str | None = None

    def thread(self, name: str, vocabulary_size: int, window: int, stop_ids: list[int]) -> Thread:
        """Raises `HTTPException` for what a server of that name has not. Without a seed, a random one."""
        if self.model not in (None, name):
            raise HTTPException(404, f"model: {self.model!r:.60} is not served; allowed: {name}")
        if not all(0 <= token < vocabulary_size for token in self.prompt):
            raise Refused(f"prompt: allowed: a list of ids below {vocabulary_size}")
        size, most = len(self.prompt), self.max_tokens
        if not size or not 0 < most <= window - size:
            raise Refused(f"{size} tokens and {most} more: allowed: at least one of each, {window} together")
        if self.stop_token_ids is not None and set(self.stop_token_ids) != set(stop_ids):
            raise Refused(f"stop_token_ids: allowed: {stop_ids}, with which the server was started")
        temperature = 0.0 if self.temperature < GREEDY else self.temperature
        key = randbits(63) if self.seed is None else self.seed
        return self.prompt, Sampling(temperature, key), size + most

    def answer(self, name: str, found: Segment, version: str) -> Json:
        choice = {"index": 0, "text": "", "token_ids": found.ids, "prompt_token_ids": self.prompt,
                  "logprobs": {"token_logprobs": found.logprobs}, "finish_reason": found.reason,
                  "stop_reason": found.ids[-1] if found.reason == "stop" else None}  # fmt: skip
        usage = {"prompt_tokens": len(self.prompt), "completion_tokens": len(found.ids)}
        return {"object": "text_completion", "model": name, "choices": [choice], "usage": usage}


class Generation(Completion):
    path: ClassVar[str] = "/generate"
    prompt: list[int] = Field(alias="input_ids")
    max_tokens: int = Field(alias="max_new_tokens")
    seed: Seed = Field(None, alias="sampling_seed")

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, body: Any) -> Any:
        settings = body.get("sampling_params") if isinstance(body, dict) else None
        if not isinstance(settings, dict):
            return body
        return {key: body[key] for key in body if key != "sampling_params"} | settings

    def answer(self, name: str, found: Segment, version: str) -> Json:
        reason = {"type": found.reason} | ({"matched": found.ids[-1]} if found.reason == "stop" else {})
        logprobs = [[value, token, None] for value, token in zip(found.logprobs, found.ids, strict=True)]
        about = {"prompt_tokens": len(self.prompt), "completion_tokens": len(found.ids),
                 "finish_reason": reason, "output_token_logprobs": logprobs}  # fmt: skip
        return {"text": "", "output_ids": found.ids, "meta_info": about | {"weight_version": version}}


class NewWeights(Body):
    model_path: Annotated[str, Field(min_length=1)]
    weight_version: str = "default"
