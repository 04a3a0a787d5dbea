"""TRL's `SFTTrainer` on packed rows."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from apr.training.sft.muon import Muon


class PackedSFTTrainer(SFTTrainer):
    """With a `matrix_learning_rate` Muon trains the layers' matrices; without one, AdamW trains all."""

    loss_is_scaled_for_ga: Any = True  # compute_loss divides by the labels of all rows of the step

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
        """How many labels an optimizer step has, over the rows of all processes."""
        labels = torch.stack([(row["shift_labels"] >= 0).sum() for row in batch_samples]).sum().to(device)
        return self.accelerator.reduce(labels, reduction="sum").clamp(min=1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross entropy of the row's labels, as a part of the mean over those of the whole step."""
        inputs = dict(inputs)
        labels = inputs.pop("shift_labels").flatten()
        outputs = model(**inputs, use_cache=False)
        loss = cross_entropy(outputs.logits.float().flatten(0, 1), labels, reduction="sum")
        loss = loss / num_items_in_batch * self.accelerator.num_processes  # whose gradients are averaged
        return (loss, outputs) if return_outputs else loss
