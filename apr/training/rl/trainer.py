"""TRL's GRPO on packed rows: what is sampled, masked and scored is the threads, not the flattened row."""

from typing import Any, cast

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from apr.training.rl.packing import position_ids


class PackedGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` for a `rollout_func` that returns, as lists over rollouts, the fields of `PackedRow` and
    `reward`, which is also what the reward function returns, and `signal`.

    The batch carries `thread_lengths` (B, N), padded with 0; TRL shuffles and splits it with the rows. The
    model must have attention "packed". The old policy's log-probabilities are the sampler's own, which
    saves a forward pass and makes the ratio exact where sampler and trainer differ by rounding. Rows of
    groups whose rewards are all equal, `signal` says, have no threads: nothing is computed for them.
    """

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        generated = super()._generate(prompts)
        fields = generated[5]
        signal = torch.tensor(fields.pop("signal"))
        lengths = pad([torch.tensor(row) for row in fields.pop("thread_lengths")], padding_value=0)
        self._lengths = (lengths * signal[:, None]).to(self.accelerator.device)
        return generated

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        # With several updates per batch, TRL first asks for the old policy's scores; they are known.
        self._old_unwanted, self._signal = self.num_iterations > 1, True
        batch = super()._generate_and_score_completions(inputs)
        batch["old_per_token_logps"] = batch["sampling_per_token_logps"]
        batch["thread_lengths"] = self._lengths
        batch["completion_mask"] = batch["completion_mask"] * self._lengths[:, :1].sign()
        batch["num_items_in_batch"] = self._scored(batch)
        return batch

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        self._lengths, self._signal = inputs["thread_lengths"], bool(inputs["num_items_in_batch"])
        loss = super()._compute_loss(model, inputs)
        # TRL logs plain means over micro-batches, some of which have few tokens or none.
        share = self._scored(inputs) / inputs["num_items_in_batch"].clamp(min=1)
        batches = cast(int, cast(GRPOConfig, self.args).steps_per_generation)
        for name in {"kl", "clip_ratio/region_mean"} & self._metrics["train"].keys():
            self._metrics["train"][name][-1] *= share.item() * batches
        return loss

    def _scored(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """How many tokens carry loss, over all processes."""
        return self.accelerator.reduce((batch["completion_mask"] * batch["tool_mask"]).sum(), reduction="sum")

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probabilities and entropies (B, C) of the last C = `logits_to_keep` tokens of rows (B, L)."""
        if self._old_unwanted:
            self._old_unwanted = False
            return torch.zeros(0), None, None
        rows = (x.split(batch_size or len(x)) for x in (input_ids, attention_mask, self._lengths))
        parts = [_score(model, self._signal, *part) for part in zip(*rows, strict=True)]
        logps, entropies = (torch.cat(scores)[:, -logits_to_keep:] for scores in zip(*parts, strict=True))
        return logps, entropies, None

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Checkpoints of a run are not published."""


def _score(
    model: torch.nn.Module, signal: bool, ids: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores rows (B, L) as one row without padding; 0 where there is no token or a thread begins.

    Without `signal` there is nothing to score in any process.
    """
    real = mask.bool() & (lengths[:, :1] > 0)
    if not real.any():
        if signal and isinstance(model, (DistributedDataParallel, FSDPModule)):  # waits for every process
            real[0, 0] = True
            lengths = real.new_ones(1, 1, dtype=lengths.dtype)
        else:
            return tuple(torch.zeros(2, *ids.shape, device=ids.device, requires_grad=True))
    tokens = ids[real]
    positions = position_ids(lengths[lengths > 0].tolist()).to(ids.device)
    labels = tokens.roll(-1).masked_fill(positions.roll(-1) == 0, -100)
    output = model(
        input_ids=tokens[None], position_ids=positions[None], shift_labels=labels[None], fused_lm_head=True
    )
    # A score belongs to the next token. The reference model has no entropy.
    logps, entropies = (
        output.log_probs.new_zeros(ids.shape).masked_scatter(real, scores[0].roll(1))
        for scores in (output.log_probs, output.log_probs if output.entropy is None else output.entropy)
    )
    return logps, entropies
