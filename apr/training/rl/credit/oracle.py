"""To each thread what is known for certain of what it did: the credit that others are measured by."""

from statistics import fmean

from apr.rollouts.verdict import label_children
from apr.training.rl.advantage import within_roles
from apr.training.rl.algorithm import Group, Step


def credit(group: Group, step: Step) -> list[list[float]] | None:
    """Returns advantages within roles of an outcome + the share of its messages that were worth sending, 0
    without any. Outcomes are those of `own`."""
    values = []
    for rollout, reward in zip(group.rollouts, group.rewards, strict=True):
        labels = label_children(step.task, group.problem, rollout)
        outcomes = [reward, *(float(label.right) for label in labels.values())]
        asked = [[labels[child].worth for spawn in thread.spawns for child in spawn.children]
                 for thread in rollout.threads]  # fmt: skip
        values.append([outcome + fmean(worth or [0]) for outcome, worth in zip(outcomes, asked, strict=True)])
    return within_roles(group, values)
