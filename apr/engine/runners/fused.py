"""A Llama's forward pass over a ragged batch of tokens on the CPU: prompts, joined and sampled tokens alike.

Every row is a token, with its slot and its position. Matrix products are torch's; what lies between them is
`kernels.c`, where a token reads the cache of its own thread as far as it goes and no further: no padding, no
mask, no order of slots. The result is that of the `transformers` model up to rounding.
"""

from math import prod
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor, nn
from transformers import PreTrainedModel

from apr.engine.kernels import load_kernels
from apr.engine.sampling import sample
from apr.engine.scheduler import Batch

ROWS = 512
"""Tokens of one pass: more of them would not fit a core's cache."""
ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class _Layer:
    """Weights as (inputs, outputs), in which small products are twice as fast; the cache is (2, slots, KV
    heads, window, d)."""

    def __init__(self, layer: Any, cache: Tensor):
        attention, mlp = layer.self_attn, layer.mlp
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.norm, self.mlp_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.projection = torch.cat([part.weight for part in parts]).t().contiguous()
        self.bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        self.output = attention.o_proj.weight.t().contiguous()
        self.gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).t().contiguous()
        self.down = mlp.down_proj.weight.t().contiguous()
        self.keys, self.values = cache


class FusedLlama:
    """A `Runner` of a Llama or Qwen2 in float32. It copies weights."""

    ragged = True

    def __init__(self, model: Any, slots: int, window: int):
        config = model.config
        self._kernels: Any = load_kernels()
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._hidden, self._d = config.hidden_size, model.model.layers[0].self_attn.head_dim
        self._window, self._epsilon, self._scale = window, config.rms_norm_eps, self._d**-0.5
        shape = 2, slots, self._groups, window, self._d
        self._caches = [_mapped_zeros(*shape) for _ in model.model.layers]
        self.reload(model)
        inner, attended = config.intermediate_size, self._heads * self._d
        projected = attended + 2 * self._groups * self._d
        widths = (self._hidden, projected, attended, 2 * inner, inner)
        self._buffers = [torch.empty(ROWS, width) for width in widths]

    @torch.no_grad()
    def reload(self, model: Any) -> None:
        self._embedding = model.model.embed_tokens.weight
        self._norm, self._vocabulary = model.model.norm.weight, model.lm_head.weight.t().contiguous()
        rotary = model.model.rotary_emb(self._embedding, torch.arange(self._window)[None])
        self._cosine, self._sine = (table[0].contiguous() for table in rotary)
        self._layers = list(map(_Layer, model.model.layers, self._caches))

    @staticmethod
    def supports(model: PreTrainedModel) -> bool:
        """Whether `model` is what this class computes, and there are kernels to do it."""
        config = model.config
        if type(model).__name__ not in ARCHITECTURES or model.device.type != "cpu":
            return False
        linear = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
        biased = {name.rpartition(".")[2] for name, module in linear.items() if module.bias is not None}
        plain = (
            all(parameter.dtype == torch.float32 for parameter in model.parameters())
            and all(type(module) is nn.Linear for module in linear.values())  # no adapters
            and biased <= {"q_proj", "k_proj", "v_proj"}
            and config.hidden_act == "silu"
            and config.rope_parameters["rope_type"] in STATIC_ROPE
            and not getattr(config, "use_sliding_window", False)
        )
        return plain and load_kernels() is not None

    def sample(self, batch: Batch) -> tuple[Array, Array]:
        return sample(self.logits(batch), batch.temperatures, batch.noise)

    def logits(self, batch: Batch) -> Tensor:
        """(n, vocabulary)."""
        ids, slots, begin, end = batch[:4]
        counts = end - begin
        last = np.cumsum(counts) - 1
        rows = np.repeat(slots, counts)
        positions = np.arange(len(rows)) - np.repeat(last + 1 - end, counts)
        tokens = torch.from_numpy(ids[rows, positions])
        slot_of, position_of = torch.from_numpy(rows), torch.from_numpy(positions)
        result = torch.empty(len(slots), self._hidden)
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            hidden = self._pass(tokens[part], slot_of[part], position_of[part])
            first, after = np.searchsorted(last, (start, start + len(hidden)))
            result[first:after] = hidden[torch.from_numpy(last[first:after] - start)]
        normed = torch.empty_like(result)
        self._rms_norm(result, self._norm, normed)
        return normed @ self._vocabulary

    def _pass(self, tokens: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Hidden states (n, hidden) of n <= ROWS tokens; their keys and values are in the cache after it."""
        n = len(tokens)
        normed, projected, attended, gated, inner = (buffer[:n] for buffer in self._buffers)
        hidden = self._embedding[tokens]
        for layer in self._layers:
            self._rms_norm(hidden, layer.norm, normed)
            torch.mm(normed, layer.projection, out=projected)
            if layer.bias is not None:
                projected += layer.bias
            self._kernels.apr_attend(
                n, self._heads, self._groups, self._d, self._window, self._scale, torch.get_num_threads(),
                *map(Tensor.data_ptr, (projected, self._cosine, self._sine, slots, positions, layer.keys,
                               layer.values, attended)),
            )  # fmt: skip
            hidden.addmm_(attended, layer.output)
            self._rms_norm(hidden, layer.mlp_norm, normed)
            torch.mm(normed, layer.gate_up, out=gated)
            self._kernels.apr_silu_multiply(n, inner.shape[1], gated.data_ptr(), inner.data_ptr())
            hidden.addmm_(inner, layer.down)
        return hidden

    def _rms_norm(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        self._kernels.apr_rms_norm(*x.shape, self._epsilon, *map(Tensor.data_ptr, (x, weight, out)))


def _mapped_zeros(*shape: int) -> Tensor:
    """Zeros that take no memory before they are written; those of torch do."""
    memory = mmap(-1, 4 * prod(shape), flags=MAP_PRIVATE | MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)
