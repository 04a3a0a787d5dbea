"""TRL's `SFTTrainer` on packed rows with a weight for every label."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from apr.core.errors import AprError
from apr.training.sft.muon import Muon


class PackedSFTTrainer(SFTTrainer):
    """With a `matrix_learning_rate` Muon trains the layers' matrices; without one, AdamW trains all."""

    loss_is_scaled_for_ga: Any = True  # compute_loss divides by the weight of all rows of the step

    def __init__(
        self, *args: Any, matrix_learning_rate: float | None, precision: torch.dtype, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.matrix_learning_rate, self.precision = matrix_learning_rate, precision

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.matrix_learning_rate is None:
            return super().create_optimizer(model)
        args = self.args
        self.optimizer = Muon(
            model or self.model, self.matrix_learning_rate, args.learning_rate, args.weight_decay,
            self.precision,
        )  # fmt: skip
        return self.optimizer

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
