"""TRL's `SFTTrainer` on packed rows with a weight for every label."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import TrainerCallback
from trl import SFTTrainer

from apr.core.errors import AprError


class PackedSFTTrainer(SFTTrainer):
    """`rows_tokens` are the tokens of the rows in the order in which they are seen; for the log only."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the weight of all rows of the step

    def __init__(self, *args: Any, row_tokens: Sequence[int], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.row_tokens = row_tokens
        self.logged_at = (self.state.global_step, time.perf_counter())

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """The weight of all labels of an optimizer step."""
        return sum(row["weights"].sum() for row in batch_samples).clamp(min=1e-9).to(device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted cross entropy of the row's labels over the weight of the whole step."""
        labels, weights = inputs.pop("shift_labels"), inputs.pop("weights")
        outputs = model(**inputs, use_cache=False)
        losses = cross_entropy(outputs.logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / num_items_in_batch
        if not torch.isfinite(loss):
            raise AprError(f"sft: the loss is {loss.item()} at step {self.state.global_step}; "
                           "a smaller sft.learning_rate may help")
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            step, now = self.state.global_step, time.perf_counter()
            rows = self.args.gradient_accumulation_steps
            since, then = self.logged_at
            logs["tokens"] = sum(self.row_tokens[: step * rows])
            logs["tokens_per_second"] = round(sum(self.row_tokens[since * rows : step * rows]) / (now - then))
            self.logged_at = (step, now)
        super().log(logs, start_time)


class Progress(TrainerCallback):
    """A bar on a terminal; elsewhere a line for every tenth of the run."""

    def __init__(self, label: str):
        self.label = label

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, disable=None)
        self.tenth = 10 * state.global_step // state.max_steps

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" not in logs:
            return
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", tokens_s=logs["tokens_per_second"])
        tenth = 10 * state.global_step // state.max_steps
        if self.bar.disable and tenth > self.tenth:
            self.tenth = tenth
            print(f"{self.label}: step {state.global_step}/{state.max_steps}, loss {logs['loss']:.4f}, "
                  f"{logs['tokens_per_second']} tokens/s", flush=True)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
