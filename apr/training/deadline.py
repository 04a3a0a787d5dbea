"""Training that has to end in time, on a machine whose speed is not known before."""

import time
from functools import partial

from transformers import TrainerCallback

from apr.core.errors import ParamsError
from apr.core.ranks import world_size


class Deadline(TrainerCallback):
    """Ends a training by `end`, in seconds of `time.monotonic`, or at its last step if that comes first.

    After each step but the first, which compiles, the number of steps becomes what the time left is enough
    for at the mean rate until then; learning rates that fall to 0 at the last step fall to 0 at that one.
    `updates` make a step. Raises `ParamsError` in several processes, whose clocks would have to agree.
    """

    def __init__(self, end: float, updates: int = 1):
        if world_size() > 1:
            raise ParamsError("a deadline: not allowed in several processes; allowed: in one")
        self._end, self._updates, self._since = end, updates, None

    def on_train_begin(self, args, state, control, lr_scheduler, **kwargs):
        self._whole, self._rules = state.max_steps, list(lr_scheduler.lr_lambdas)

    def on_step_end(self, args, state, control, lr_scheduler, **kwargs):
        if (step := state.global_step) % self._updates:
            return
        now = time.monotonic()
        if now >= self._end:
            state.max_steps = step
        elif self._since:
            first, then = self._since
            steps = (self._end - now) * (step - first) / (now - then) // self._updates
            state.max_steps = min(self._whole, step + int(steps) * self._updates)
        else:
            self._since = step, now
        control.should_training_stop |= state.max_steps == step
        control.should_log |= control.should_training_stop
        lr_scheduler.lr_lambdas = [self._shortened(rule, state.max_steps) for rule in self._rules]

    def _shortened(self, rule: partial, steps: int) -> partial:
        """Returns the rule of a learning rate for so many steps in all."""
        if "num_training_steps" not in rule.keywords:  # the rate stays as it is after the warm-up
            return rule
        warm = round(rule.keywords["num_warmup_steps"] * steps / self._whole)
        return partial(rule, num_warmup_steps=warm, num_training_steps=steps)
