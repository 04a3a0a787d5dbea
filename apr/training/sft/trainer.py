"""TRL's `SFTTrainer` on packed rows with a weight for every label."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from trl import SFTTrainer

from apr.core.errors import AprError
from apr.core.progress import Meter
from apr.training.sft.muon import Muon


class PackedSFTTrainer(SFTTrainer):
    """For the log: `row_tokens` and `row_flops` of each row, in the order in which they are seen; `peak`, the
    FLOP/s of a device, of which the share that is reached is logged unless it is None.
    With a `matrix_learning_rate` Muon trains the layers' matrices; without one, AdamW trains all."""

    loss_is_scaled_for_ga: Any = True  # compute_loss divides by the weight of all rows of the step

    def __init__(
        self, *args: Any, row_tokens: Sequence[int], row_flops: Sequence[float], peak: float | None,
        matrix_learning_rate: float | None, **kwargs: Any,
    ):  # fmt: skip
        super().__init__(*args, **kwargs)
        self.row_tokens, self.row_flops, self.peak = row_tokens, row_flops, peak
        self.matrix_learning_rate = matrix_learning_rate
        self.logged: tuple[int, float] | None = None

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.matrix_learning_rate is None:
            return super().create_optimizer(model)
        args = self.args
        self.optimizer = Muon(
            model or self.model, self.matrix_learning_rate, args.learning_rate, args.weight_decay
        )
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.logged = self.logged or (self.state.global_step, time.perf_counter())
        return super().training_step(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """The weight of all labels of an optimizer step, over the rows of all processes."""
        weight = sum(row["weights"].sum() for row in batch_samples).to(device)
        return self.accelerator.reduce(weight, reduction="sum").clamp(min=1e-9)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted cross entropy of the row's labels over the weight of the whole step."""
        inputs = dict(inputs)
        labels, weights = inputs.pop("shift_labels"), inputs.pop("weights")
        outputs = model(**inputs, use_cache=False)
        losses = cross_entropy(outputs.logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / num_items_in_batch
        loss = loss * self.accelerator.num_processes  # whose gradients are averaged
        if not torch.isfinite(loss):
            step = self.state.global_step
            raise AprError(f"sft: the loss is {loss.item()} at step {step}; try a smaller sft.learning_rate")
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            step, now = self.state.global_step, time.perf_counter()
            since, then = self.logged or (step, now)
            rows = self.args.gradient_accumulation_steps * self.accelerator.num_processes
            done, seconds = slice(since * rows, step * rows), now - then
            logs["tokens"] = sum(self.row_tokens[: step * rows])
            logs["tokens_per_second"] = round(sum(self.row_tokens[done]) / seconds)
            if self.peak:
                peak = self.peak * self.accelerator.num_processes
                logs["peak_share"] = round(sum(self.row_flops[done]) / seconds / peak, 4)
            self.logged = (step, now)
        super().log(logs, start_time)


class ShowProgress(TrainerCallback):
    def __init__(self, title: str):
        self.title = title
        self.note = ""

    def on_train_begin(self, args, state, control, **kwargs):
        self.meter = Meter(self.title, state.max_steps, "steps").__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.meter.update(state.global_step, self.note)

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.note = f"loss {logs['loss']:.4f} {logs['tokens_per_second']} tokens/s"

    def on_train_end(self, args, state, control, **kwargs):
        self.meter.__exit__()
