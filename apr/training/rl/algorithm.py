"""What a reward and a credit are. Each is one small file, which `rl.policies` chooses by its name.

A step's rollouts come in groups, those of one problem. A reward says what a rollout is worth; a credit turns
the rewards of a group into an advantage for each of its threads, which all tokens share that the thread has
sampled.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from apr.core.params import Policy
from apr.language import Condition
from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import Judgement
from apr.tasks.task import Problem, Task


class Step(NamedTuple):
    """What may be known beside the rollouts."""

    number: int
    """From 0."""
    steps: int
    settings: Policy
    task: Task
    """Its verifier and its language, for credits that look into threads."""
    asked: Condition | None = None
    """What the prompts of the rollout's group ask for, which rewards are told."""


class Group(NamedTuple):
    """The rollouts of one problem in one step, in the order of `verdicts` and `rewards`."""

    problem: Problem
    rollouts: Sequence[Rollout]
    verdicts: Sequence[Judgement]
    rewards: Sequence[float]


Reward = Callable[[Rollout, Judgement, Step], float]
Credit = Callable[[Group, Step], list[list[float]] | None]
"""Returns, for each rollout, the advantages of its threads; None where nothing is to be learnt from a group,
which then is not scored."""
