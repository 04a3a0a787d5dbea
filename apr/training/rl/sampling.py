"""The sampling half of a step: problems -> rollouts of the live policy -> rewards -> advantages -> rows."""

import time
from collections.abc import Sequence
from statistics import fmean
from typing import cast

from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel

from apr.core.errors import ParamsError
from apr.core.params import LABELLED, Params, Unit
from apr.core.ranks import rank, world_size
from apr.core.seeds import derive_rng, derive_seed
from apr.engine.slots import SlotEngine
from apr.language import Condition, Language
from apr.rollouts.decoding import orchestrate, prompt_of
from apr.rollouts.rollout import Request, Rollout, Status
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.task import Problem
from apr.training.rl.agreement import agreements
from apr.training.rl.algorithm import Group, Step
from apr.training.rl.credit import CREDITS
from apr.training.rl.packing import PackedRow, pack
from apr.training.rl.rewards import REWARDS
from apr.training.rl.servers import ServedPolicy
from apr.training.rl.trainer import PackedGRPOTrainer
from apr.training.sharding import sharded


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
    """Makes the rows of every step; `record` holds the figures of the last one.

    What is trained on is decoded by `served`, unless that is None. Raises `ParamsError` if the window is too
    small for a problem's prompt.
    """

    def __init__(self, params: Params, policy: str, language: Language, problems: Sequence[Problem],
                 served: ServedPolicy | None = None):  # fmt: skip
        self._params, self._language, self._served = params, language, served
        self._task = open_task(params, language)
        self._settings = params.rl.policies[policy]
        self._steps = steps_of(params, policy)
        self._problems = {problem.id: problem for problem in problems}
        for problem in problems:
            self._prompt(problem, 0)  # has the window room after it?
        self.record: dict[str, float | None] = {}
        self._engine: SlotEngine | None = None

    def asked(self, problem: Problem, number: int) -> Condition | None:
        """Returns what all prompts of a problem ask for in a step, from 0."""
        its = self._settings
        if its.devices:
            rng = derive_rng(self._params.seed, "devices", number, problem.id)
            return Condition("devices", rng.choice(its.devices))
        kind: Unit = "children" if its.tokens is None else "tokens"
        return None if its.amount is None else Condition(kind, its.amount)

    def greedy(self, problem: Problem) -> Request:
        """Returns the request for the policy's greedy rollout of a problem, asked as in the first step."""
        return Request(problem.id, self._prompt(problem, 0), 0.0, 0)

    def _prompt(self, problem: Problem, number: int) -> list[int]:
        return prompt_of(self._task, problem, self.asked(problem, number))

    def decode(self, requests: Sequence[Request], model: PreTrainedModel | PeftModel) -> list[Rollout]:
        """Returns rollouts of the model in training, in the order of their requests; decoded here, in
        evaluation mode, adapters active."""
        engine, window, training = self._params.engine, self._params.grammar.window, model.training
        base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        model.eval()
        try:
            if self._engine is None or sharded():  # weights that are gathered are not to outlive the step
                stop_ids = self._language.syntax.stop_ids
                self._engine = SlotEngine(base, stop_ids, engine.slots, window, engine.workers)
            else:
                self._engine.reload_weights(base)
            return orchestrate(self._params, self._language, self._engine).run(requests)
        finally:
            model.train(training)

    def sample(self, names: list[str], trainer: PackedGRPOTrainer) -> list[PackedRow]:
        """Returns the row of a rollout for each problem id in `names`, which come in groups of equal ids.

        A rollout depends on seed, step, problem and its place in the group, so a run that resumes repeats it.
        Where several processes train together, each has a part of the names, that may cut a group; all take
        turns in decoding the rollouts of the whole step.
        """
        started, rl = time.perf_counter(), self._params.rl
        own, processes = rank(), world_size()
        everyone = gather_object(names)
        number = trainer.state.global_step // rl.inner_updates
        seed = derive_seed(self._params.seed, "rl", number)
        prompts = [self._prompt(self._problems[name], number) for name in everyone]
        requests = [Request(f"{name}/{row % rl.group}", prompt, rl.temperature, seed)
                    for row, (name, prompt) in enumerate(zip(everyone, prompts, strict=True))]  # fmt: skip
        mine = requests[own::processes]
        decoded = self._served.decode(mine, trainer) if self._served else self.decode(mine, trainer.whole())
        parts = gather_object([decoded])
        rollouts = [parts[row % processes][row // processes] for row in range(len(requests))]
        step = Step(number, self._steps, self._settings, self._task)
        groups = [self._group(everyone[at], rollouts[at : at + rl.group], step)
                  for at in range(0, len(rollouts), rl.group)]  # fmt: skip
        advantages = [CREDITS[self._settings.credit](group, step) for group in groups]
        self.record = {
            "step": number + 1,
            "reward": fmean(reward for group in groups for reward in group.rewards),
            "accuracy": fmean(verdict.strict for group in groups for verdict in group.verdicts),
            "zero_variance_groups": advantages.count(None),
            **figures(rollouts),
            "rollout_seconds": time.perf_counter() - started,
        }
        for devices in self._settings.devices or ():
            counts = [rollout.usage.children for group in groups for rollout in group.rollouts
                      if self.asked(group.problem, number) == ("devices", devices)]  # fmt: skip
            self.record[f"children_{devices}"] = fmean(counts) if counts else None
        if self._settings.credit in LABELLED:
            self.record |= agreements(groups, step)
        rows = [pack(rollout, given[place] if given else None)
                for group, given in zip(groups, advantages, strict=True)
                for place, rollout in enumerate(group.rollouts)]  # fmt: skip
        return rows[own * len(names) : (own + 1) * len(names)]

    def _group(self, name: str, rollouts: Sequence[Rollout], step: Step) -> Group:
        problem = self._problems[name]
        verdicts = [judge(self._task, problem, rollout) for rollout in rollouts]
        reward, step = REWARDS[self._settings.reward], step._replace(asked=self.asked(problem, step.number))
        rewards = [reward(*judged, step) for judged in zip(rollouts, verdicts, strict=True)]
        return Group(problem, rollouts, verdicts, rewards)


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
