"""To each child what its rollout is worth less what that would be worth without it (difference rewards).

Nothing is decoded again: without a child, its parent fails if the task needs what it returned, and else does
what it did. So of two children that are as right neither makes a difference where one is enough.
"""

from collections.abc import Mapping

from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import label_children
from apr.tasks.task import Label
from apr.training.rl.advantage import standardise
from apr.training.rl.algorithm import Group, Step
from apr.training.rl.rewards import REWARDS


def credit(group: Group, step: Step) -> list[list[float]] | None:
    """Returns, for each rollout, the root's advantage among the roots, and the difference that each child
    makes to the reward (by its tokens too), as it is; None where nobody makes any."""
    roots = standardise(group.rewards) or [0.0] * len(group.rewards)
    advantages = [[root, *differences(group, step, place)] for place, root in enumerate(roots)]
    return advantages if any(map(any, advantages)) else None


def differences(group: Group, step: Step, place: int) -> list[float]:
    """Returns the difference that each child makes to the reward of one rollout of the group."""
    rollout, verdict, reward = group.rollouts[place], group.verdicts[place], REWARDS[step.settings.reward]
    labels, found = label_children(step.task, group.problem, rollout), []
    for child in labels:
        needed = pivotal(rollout, labels, child, step.task.needs == "all")
        without = verdict._replace(strict=False, lenient=False) if needed else verdict
        found.append(group.rewards[place] - reward(rollout.without(child), without, step))
    return found


def pivotal(rollout: Rollout, labels: Mapping[int, Label], child: int, all_needed: bool) -> bool:
    """Whether a child helped, nobody else that its parent asked could have stood in for it, and the same is
    true of its parent."""

    def helped(index: int) -> bool:
        return labels[index].worth and labels[index].right

    parent = rollout.threads[child].parent
    others = (thread.index for thread in rollout.threads[1:]
              if thread.parent == parent and thread.index != child)  # fmt: skip
    alone = helped(child) and (all_needed or not any(map(helped, others)))
    return alone and (parent == 0 or pivotal(rollout, labels, parent, all_needed))
