"""The sampling half of a step: problems -> rollouts of the live model -> the verifier's rewards."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel

from apr.core.errors import ParamsError
from apr.core.params import Params
from apr.core.process import share
from apr.core.seeds import derive_rng, derive_seed
from apr.engine.interface import Decoder
from apr.engine.slots import SlotEngine
from apr.language import Condition, Language
from apr.rollouts.decoding import orchestrate, prompt_of
from apr.rollouts.rollout import Request, Rollout, Status
from apr.rollouts.verdict import judge
from apr.tasks.countdown import Problem
from apr.training.rl.packing import PackedRow, pack
from apr.training.rl.servers import ServedPolicy
from apr.training.sharding import gather


def steps_of(params: Params, policy: str) -> int:
    return params.rl.policies[policy].steps or params.rl.steps


def draw_problems(params: Params, policy: str, problems: Sequence[Problem]) -> list[Problem]:
    """The problems of every step, `params.rl.prompts` different ones each; a step's are any policy's."""
    if params.rl.prompts > len(problems):
        raise ParamsError(f"rl.prompts: {params.rl.prompts} is not allowed; allowed: at most "
                          f"problems.train = {len(problems)}")
    drawn: list[Problem] = []
    for step in range(steps_of(params, policy)):
        drawn += derive_rng(params.seed, "rl problems", step).sample(problems, params.rl.prompts)
    return drawn


class Sampler:
    """`sample` is the trainer's `rollout_func`; `record` holds the figures of the last step.

    What is trained on is decoded by `served`, unless that is None.
    """

    def __init__(self, params: Params, policy: str, language: Language, problems: Sequence[Problem],
                 served: ServedPolicy | None = None):  # fmt: skip
        children = params.rl.policies[policy].children
        self._params = params
        self._language = language
        self._problems = {problem.id: problem for problem in problems}
        self._served = served
        self._condition = None if children is None else Condition("children", children)
        self.record: dict[str, float] = {}
        self.bare: Any = None  # where the weights of the model in training are gathered, if they are sharded
        for problem in problems:
            self.request(problem, "", 0.0, 0)

    def request(self, problem: Problem, name: str, temperature: float, seed: int) -> Request:
        """A rollout of `problem`, whose prompt asks for what the policy's do. Raises `ParamsError`."""
        prompt = prompt_of(self._params, self._language, problem, self._condition)
        return Request(name, prompt, temperature, seed)

    def decode(self, requests: Sequence[Request], model: torch.nn.Module) -> list[Rollout]:
        """Rollouts of the model in training, in this process, in the order of their requests. All processes
        have to call this if its weights are sharded."""
        with decoding(model, self.bare) as decoder:
            # A new engine has empty KV caches: nothing is left of the weights before the last update.
            slots, window = self._params.engine.slots, self._params.grammar.window
            return self._run(requests, SlotEngine(decoder, self._language.syntax.stop_ids, slots, window))

    def _run(self, requests: Sequence[Request], decoder: Decoder) -> list[Rollout]:
        return orchestrate(self._params, self._language, decoder).run(requests)

    def _decode_step(self, requests: Sequence[Request], trainer: Any) -> list[Rollout]:
        if self._served is None:
            return self.decode(requests, trainer.accelerator.unwrap_model(trainer.model))
        with self._served.decoder(trainer, self.bare) as decoder:
            return self._run(requests, decoder)

    def sample(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        """A rollout for each problem id in `prompts`, which come in groups of equal ids.

        Returns the fields of `PackedRow`, `reward`, and `signal` (whether the rewards of its group differ),
        lists in the order of `prompts`. A rollout depends on seed, step, problem and its place in the group,
        so a run that resumes repeats it. Where several processes train together, each has a part of the
        prompts, that may cut a group; all take turns in decoding the rollouts of the whole step.
        """
        started = time.perf_counter()
        rl = self._params.rl
        (rank, processes), mine = share(), len(prompts)
        if processes > 1:
            prompts = gather_object(prompts)
        step = trainer.state.global_step // rl.inner_updates
        seed = derive_seed(self._params.seed, "rl", step)
        requests = [
            self.request(self._problems[name], f"{name}/{row % rl.group}", rl.temperature, seed)
            for row, name in enumerate(prompts)
        ]
        rollouts = self._decode_step(requests[rank::processes], trainer)
        if processes > 1:
            parts = gather_object([rollouts])
            rollouts = [parts[row % processes][row // processes] for row in range(len(requests))]
        rewards = [
            float(judge(self._language, self._problems[name], rollout).strict)
            for name, rollout in zip(prompts, rollouts, strict=True)
        ]
        groups = [rewards[start : start + rl.group] for start in range(0, len(rewards), rl.group)]
        self.record = {
            "step": step + 1,
            "reward": fmean(rewards),
            "accuracy": fmean(reward == 1.0 for reward in rewards),
            "zero_variance_groups": sum(len(set(group)) == 1 for group in groups),
            **figures(rollouts),
            "rollout_seconds": time.perf_counter() - started,
        }
        signal = [len(set(group)) > 1 for group in groups for _ in group]
        own = slice(rank * mine, (rank + 1) * mine)
        rows = [pack(rollout) for rollout in rollouts[own]]
        columns = {field: [getattr(row, field) for row in rows] for field in PackedRow._fields}
        return columns | {"reward": rewards[own], "signal": signal[own]}


def given_reward(reward: list[float], **_: Any) -> list[float]:
    """The trainer's reward function: the verdicts were made on threads, before they were packed."""
    return reward


def figures(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over rollouts, and over threads (`malformed`, `truncated`) or sampled tokens (`entropy`)."""
    usages = [rollout.usage for rollout in rollouts]
    threads = [thread for rollout in rollouts for thread in rollout.threads]
    statuses = [thread.status for thread in threads]
    return {
        "children": fmean(usage.children for usage in usages),
        "total_tokens": fmean(usage.total for usage in usages),
        "sequential_tokens": fmean(usage.sequential for usage in usages),
        "malformed": statuses.count(Status.MALFORMED) / len(statuses),
        "truncated": statuses.count(Status.TRUNCATED) / len(statuses),
        "entropy": -sum(sum(thread.logprobs) for thread in threads) / sum(usage.total for usage in usages),
    }


@contextmanager
def decoding(model: torch.nn.Module, bare: Any = None) -> Iterator[PreTrainedModel]:
    """The model in training, whole, for the time of decoding: in evaluation mode, adapters active."""
    training = model.training
    whole = gather(model, bare).eval()
    try:
        yield cast(PreTrainedModel, whole.get_base_model() if isinstance(whole, PeftModel) else whole)
    finally:
        model.train(training)
