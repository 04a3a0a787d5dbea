"""To each thread its own outcome, whatever became of the others: a child by its own sub-problem."""

from apr.rollouts.verdict import label_children
from apr.training.rl.advantage import within_roles
from apr.training.rl.algorithm import Group, Step


def credit(group: Group, step: Step) -> list[list[float]] | None:
    """Returns advantages within roles: of a root by its reward, of a child by 1 if it returned what is right
    for its sub-problem, "none" where there is nothing to find included, else 0."""
    values = []
    for rollout, reward in zip(group.rollouts, group.rewards, strict=True):
        labels = label_children(step.task, group.problem, rollout).values()
        values.append([reward, *(float(label.right) for label in labels)])
    return within_roles(group, values)
