"""How far training is, and how fast: shown, and a JSON line at each logged step, apart from what is made."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from apr.core.errors import AprError
from apr.core.progress import Meter
from apr.training.curves import Curves


class Pace(TrainerCallback):
    """Appends `step`, `tokens_per_second` and, on a device whose `peak` FLOP/s are known, `peak_share` to
    `path`, unless that is None, and what is logged to `curves`; `tokens` and `flops` are those of the first
    0, 1, 2, ... steps. Raises `AprError` if what is logged is no finite loss: to look at that of each step
    would be to wait for a GPU."""

    def __init__(
        self, title: str, path: Path | None, curves: Curves, tokens: Sequence[int], flops: Sequence[float],
        peak: float | None,
    ):  # fmt: skip
        self._title, self._path, self._tokens, self._flops, self._peak = title, path, tokens, flops, peak
        self._curves, self._note = curves, ""

    def on_train_begin(self, args, state, control, **kwargs):
        if self._path:
            self._path.touch()  # a run that goes on adds to what is there
        self._curves.begin(state.global_step)
        self._meter = Meter(self._title, state.max_steps, "steps").__enter__()
        self._since, self._then = state.global_step, time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self._meter.update(state.global_step, self._note)

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" not in logs:  # the trainer's own summary at the end
            return
        since, step, now = self._since, state.global_step, time.perf_counter()
        if not math.isfinite(logs["loss"]):
            raise AprError(f"sft: the loss is {logs['loss']} at step {step}; try a smaller sft.learning_rate")
        rate = round((self._tokens[step] - self._tokens[since]) / (now - self._then))
        line = {"step": step, "tokens_per_second": rate}
        if self._peak:
            share = (self._flops[step] - self._flops[since]) / (now - self._then) / self._peak
            line["peak_share"] = round(share, 4)
        self._since, self._then = step, now
        self._curves.write(logs | {"step": step, "tokens": self._tokens[step]})
        self._note = f"loss {logs['loss']:.4f} {rate} tokens/s"
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def on_train_end(self, args, state, control, **kwargs):
        self._meter.__exit__()
