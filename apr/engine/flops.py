"""FLOPs of a causal LM's passes, and what devices can do.

A forward pass over threads of T tokens in all takes

    2 N T + 4 L d (sum over threads of length^2 / 2)    FLOPs,

N weights in matrices (output layer included), L layers with d wide attention; a backward pass twice that.
"""

from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class Device(NamedTuple):
    """`flops`: dense FLOP/s by precision; `bandwidth`: of memory, in bytes/s."""

    flops: dict[str, float]
    bandwidth: float


DEVICES = {
    "H200": Device({"bfloat16": 989e12, "float32": 67e12}, 4.8e12),
    "H100": Device({"bfloat16": 989e12, "float32": 67e12}, 3.35e12),
    "A100": Device({"bfloat16": 312e12, "float32": 19.5e12}, 2.0e12),
}
"""Peaks of the SXM modules (of 80 GB for the H100 and the A100) in NVIDIA's data sheets, without sparsity."""


class Sizes(NamedTuple):
    weights: int
    """In matrices that multiply every token: of the layers, and the output layer."""
    attention: int
    """Layers x width of their queries."""

    def forward(self, tokens: float, squares: float) -> float:
        """FLOPs over threads of `tokens` in all; `squares` is the sum of their squared lengths."""
        return 2 * self.weights * tokens + 2 * self.attention * squares


def sizes_of(model: PreTrainedModel) -> Sizes:
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    linear = [module for module in model.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    return Sizes(sum(module.weight.numel() for module in linear),
                 config.num_hidden_layers * config.num_attention_heads * width)  # fmt: skip


def bfloat16_peak(device: torch.device) -> float | None:
    """FLOP/s of a GPU of `DEVICES`; None for any other device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((known.flops["bfloat16"] for part, known in DEVICES.items() if part in name), None)
