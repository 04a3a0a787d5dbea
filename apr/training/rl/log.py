"""What a step of RL was like: one JSON line per step, and the summary of a run."""

import json
import math
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from apr.core.errors import AprError
from apr.core.params import Rl
from apr.core.progress import Meter
from apr.training.curves import Curves

if TYPE_CHECKING:
    from apr.training.rl.sampling import Sampler

FIGURES = {"kl": "kl", "clip_ratio/region_mean": "clip_share", "grad_norm": "grad_norm", "loss": "loss"}
"""TRL's names, and ours. Without a KL term TRL names no KL: 0 then."""
MISMATCH = ("mismatch_kl", "mismatch")
EXPLODED = 100
"""Multiples of `rl.max_grad_norm` beyond which an update's direction is not that of its batch, but of a few
tokens whose probability has collapsed."""


class StepLog(TrainerCallback):
    """Appends a line to `path` after the last update of each step, and to `seconds`, which is no artefact;
    its numbers go to `curves` too.

    Keys: step (from 1), reward, accuracy, children, total_tokens, sequential_tokens (means over rollouts),
    malformed, truncated (shares of threads), entropy (of the policy that sampled: minus the mean
    log-probability of its tokens), zero_variance_groups, kl, clip_share (over the tokens of groups with an
    advantage; null if there are none), mismatch_kl, mismatch (of trainer and sampler on the same tokens, by
    the same weights: mean KL, largest difference of a log-probability; null likewise), grad_norm, loss (means
    over updates), exploded_updates (gradients of more than `EXPLODED` times `rl.max_grad_norm`, before they
    are cut); where prompts ask for devices, `children_N`, the mean of those that ask for N (null if none do);
    where a credit asks for labels of children, how all credits agree with the oracle on what was
    sampled (`apr.training.rl.agreement`). In `seconds`: step, rollout_seconds, update_seconds; twice for a
    step that is done again, where a run goes on.

    Raises `AprError` if a loss or a gradient is not finite, or a mismatch larger than `rl.max_mismatch`.
    """

    def __init__(self, path: Path, seconds: Path, sampler: "Sampler", meter: Meter, rl: Rl,
                 curves: Curves):  # fmt: skip
        self._path, self._seconds, self._sampler, self._meter = path, seconds, sampler, meter
        self._curves = curves
        self._inner_updates, self._prompts = rl.inner_updates, rl.prompts
        self._most, self._most_mismatch = EXPLODED * rl.max_grad_norm, rl.max_mismatch
        self._updates: list[dict[str, Any]] = []

    def on_train_begin(self, args, state, control, **_):
        """Forgets what was logged after the checkpoint that the run goes on from."""
        done = state.global_step // self._inner_updates
        kept = [line for line in read_log(self._path) if line["step"] <= done]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._seconds.touch()
        self._curves.begin(done)
        self._exploded = sum(line["exploded_updates"] for line in kept)

    def on_step_begin(self, args, state, control, **_):
        if state.global_step % self._inner_updates == 0:
            self._started = time.perf_counter()

    def on_log(self, args, state, control, logs, **_):
        if "grad_norm" not in logs:  # the trainer's own summary at the end
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise AprError(f"rl: {name} is {logs[name]} at step {self._sampler.record['step']}; try a "
                               "smaller rl.learning_rate")
        if logs.get("mismatch", 0.0) > self._most_mismatch:
            raise AprError(f"rl: at step {self._sampler.record['step']} sampler and trainer differ by "
                           f"{logs['mismatch']:.2g} in a log-probability; allowed: rl.max_mismatch = "
                           f"{self._most_mismatch:g}")  # fmt: skip
        self._updates.append({ours: logs.get(theirs, 0.0) for theirs, ours in FIGURES.items()}
                             | {name: logs.get(name) for name in MISMATCH})  # fmt: skip
        if len(self._updates) < self._inner_updates:
            return
        line: dict[str, Any] = dict(self._sampler.record)
        line |= {name: fmean(update[name] for update in self._updates) for name in FIGURES.values()}
        line |= {name: self._updates[0][name] for name in MISMATCH}
        line["exploded_updates"] = sum(update["grad_norm"] > self._most for update in self._updates)
        if line["zero_variance_groups"] == self._prompts:
            line |= {"kl": None, "clip_share": None}
        rollout, whole = line.pop("rollout_seconds"), time.perf_counter() - self._started
        seconds = {"step": line["step"], "rollout_seconds": rollout, "update_seconds": whole - rollout}
        self._updates = []
        for path, written in ((self._path, line), (self._seconds, seconds)):
            with path.open("a") as file:
                file.write(json.dumps(written) + "\n")
        self._curves.write(line)
        self._exploded += line["exploded_updates"]
        said = f"reward {line['reward']:.3f} children {line['children']:.1f}"
        said += f" exploded updates {self._exploded}" if self._exploded else ""
        self._meter.update(line["step"], said)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summary(lines: list[dict[str, Any]], prompts: int) -> dict[str, float | None]:
    """Means of every figure over the last quarter of the steps, and counts over all of them."""
    last = lines[-max(1, len(lines) // 4) :]
    names = [name for name in last[0] if name != "step"]
    known = {name: [line[name] for line in last if line[name] is not None] for name in names}
    return {name: fmean(values) if values else None for name, values in known.items()} | {
        "steps": len(lines),
        "steps_without_signal": sum(line["zero_variance_groups"] == prompts for line in lines),
        "exploded_updates": sum(line["exploded_updates"] for line in lines),
        "first_reward": lines[0]["reward"],
        "mismatch": max((line["mismatch"] for line in lines if line["mismatch"] is not None), default=None),
    }
