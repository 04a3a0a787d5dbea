"""What a finished rollout is worth: its root's answer, judged by the task's verifier."""

from typing import NamedTuple

from apr.language import Malformed
from apr.rollouts.rollout import Rollout, Status
from apr.tasks.task import Label, Problem, Task

NO_SOLUTION = "none"


class Judgement(NamedTuple):
    """What is said of a rollout, in evaluations too. What the model gets wrong is a reason, never an error.

    `answer` is the root's, "none" where it declares no solution, None where it gives none; `strict` is the
    verdict that counts. See `apr.tasks.task.Verdict`.
    """

    status: str
    answer: str | None = None
    expression: str | None = None
    strict: bool = False
    lenient: bool = False
    reason: str = ""


def judge(task: Task, problem: Problem, rollout: Rollout) -> Judgement:
    """Returns the verdict on the root's answer; one that gives none is not solved (the paper's rule)."""
    root = rollout.threads[0]
    if root.status != Status.DONE:
        return Judgement(str(root.status), reason=root.reason)
    verdict = task.verify(problem, root.ids)
    if isinstance(verdict, Malformed):
        return Judgement(str(Status.MALFORMED), reason=verdict.reason)
    strict, lenient, reason, answer, expression = verdict
    return Judgement(str(root.status), answer or NO_SOLUTION, expression, strict, lenient, reason)


def label_children(task: Task, problem: Problem, rollout: Rollout) -> dict[int, Label]:
    """Returns what the task knows of each child, by the thread's index; one that did not end by itself has
    returned nothing."""
    found = {}
    for thread in rollout.threads[1:]:
        ended = thread.status == Status.DONE
        returned = task.language.syntax.returned(thread.ids) if ended else None
        prompt = thread.ids[: thread.prompt_length]
        found[thread.index] = task.label(
            problem, prompt, None if isinstance(returned, Malformed) else returned
        )
    return found
