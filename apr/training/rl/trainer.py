"""TRL's GRPO on packed rows whose advantages are made before; all that is private to TRL is here."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from apr.training.layers import quickest, use_kernels
from apr.training.rl.packing import NOT_SCORED, PackedRow
from apr.training.rl.update import mismatch, score
from apr.training.sharding import before_sharding, gather

POSITIONS = "token_type_ids"
"""A column of a batch that TRL hands on, whatever it holds, to `_get_per_token_logps_and_entropies`."""


class PackedGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` whose rows are those that `sample(prompts, trainer)` returns, in the order of `prompts`,
    each of which comes `num_generations` times.

    The model must have attention "packed". The old policy's log-probabilities are the sampler's own, which
    saves a forward pass and makes the ratio exact where sampler and trainer differ by rounding.
    """

    def __init__(self, sample: Callable[..., list[PackedRow]], prompts: Sequence[str], **given: Any):
        dataset = Dataset.from_dict({"prompt": prompts})
        super().__init__(reward_funcs=_no_reward, train_dataset=dataset, **given)  # type: ignore[arg-type]
        for model in filter(None, (self.model, self.ref_model)):
            # As the sampler decodes; gradients need not be as exact as the ratio to what it sampled.
            use_kernels(model, self.accelerator.device, torch.float32, quickest(self.accelerator.device))
        self.remove_callback(PrinterCallback)
        self._sample, self._skeleton = sample, before_sharding(self)

    def whole(self, first_only: bool = False) -> Any:
        """Returns the model in training in one piece, as `gather` does; every process has to call this."""
        return gather(self.accelerator.unwrap_model(self.model), self._skeleton, first_only)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = self._sample([each["prompt"] for each in inputs], self)
        batch = columns(rows, cast(int, self._tokenizer.pad_token_id))
        batch = {name: column.to(self.accelerator.device) for name, column in batch.items()}
        batch["num_items_in_batch"] = self._scored(batch)
        if self.beta:
            batch["ref_per_token_logps"] = self._reference(batch)
        return batch

    def _reference(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities (B, C) of the model that training began with: a copy, or without adapters."""
        adapted = self.accelerator.unwrap_model(self.model) if self.ref_model is None else None
        model = cast(torch.nn.Module, self.ref_model or self.model)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        size = self.args.per_device_train_batch_size
        parts = zip(ids.split(size), batch[POSITIONS].split(size), strict=True)
        with torch.no_grad(), adapted.disable_adapter() if adapted else nullcontext():
            scores = torch.cat([score(model, *part, self.temperature) for part in parts])
        return scores[:, -batch["completion_ids"].shape[1] :]

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if not inputs["num_items_in_batch"]:  # in no process
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        loss = super()._compute_loss(model, inputs)
        logged, scored = self._metrics["train"], inputs["num_items_in_batch"]
        if self.state.global_step % self.num_iterations == 0:  # by the weights that sampled
            total, largest = map(self.accelerator.gather, mismatch(self._scores, inputs))
            logged["mismatch_kl"] = [sum(logged["mismatch_kl"]) + (total.sum() / scored).item()]
            logged["mismatch"] = [max(*logged["mismatch"], 0.0, largest.max().item())]
        # TRL logs plain means over micro-batches, some of which have few tokens or none.
        share = self._scored(inputs) / scored
        batches = cast(int, cast(GRPOConfig, self.args).steps_per_generation)
        for name in {"kl", "clip_ratio/region_mean"} & logged.keys():
            logged[name][-1] *= share.item() * batches
        return loss

    def _scored(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """How many tokens carry loss, over all processes."""
        return self.accelerator.reduce(batch["completion_mask"].sum(), reduction="sum")

    def _get_per_token_logps_and_entropies(
        self, model: torch.nn.Module, input_ids: torch.Tensor, mask: torch.Tensor, kept: int, **others: Any
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Log-probabilities (B, C) of the last C = `kept` tokens of rows (B, L). No entropies: 0."""
        logps = score(model, input_ids, others[POSITIONS], self.temperature)[:, -kept:]
        self._scores = logps.detach()
        return logps, torch.zeros_like(logps), None

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Checkpoints of a run are not published."""


def columns(rows: Sequence[PackedRow], padding: int) -> dict[str, torch.Tensor]:
    """Returns a batch by TRL's names: prompts padded on the left, what is behind them on the right."""

    def column(parts: Sequence[Sequence[float]], fill: int = 0, side: str = "right") -> torch.Tensor:
        return pad([torch.tensor(part) for part in parts], padding_value=fill, padding_side=side)

    longest = max(len(row.prompt_ids) for row in rows)
    return {
        "prompt_ids": column([row.prompt_ids for row in rows], padding, "left"),
        "prompt_mask": column([[1] * len(row.prompt_ids) for row in rows], 0, "left"),
        "completion_ids": column([row.completion_ids for row in rows], padding),
        "completion_mask": column([row.mask for row in rows]),
        "old_per_token_logps": column([row.logprobs for row in rows]),
        "advantages": column([row.advantages for row in rows]),
        POSITIONS: column([[NOT_SCORED] * (longest - len(row.prompt_ids)) + row.positions for row in rows],
                          NOT_SCORED),
    }


def _no_reward(**_: Any) -> list[float]:
    raise AssertionError("rewards are given to threads, before they are packed")
