"""A decoding step of Llamas, Qwen2 and Qwen3 on a GPU: a token of each thread, in ten launches a layer.

The passes of `transformers` take fifty, and attention in them reads as many positions of every thread as the
longest has. Here a Triton kernel does all that lies between the products of attention, and reads what a
thread has. The result is that of the `transformers` model up to rounding.
"""

from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu
from transformers import PreTrainedModel

from apr.engine.cache import SlotCache
from apr.engine.runners.attend import attend

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
DEVICES = ("cuda",)
HEADS = (16, 32, 64, 128, 256)
"""Sizes of a head."""
BLOCK = 64
"""Positions that a thread's attention reads at a time."""


def plain(model: PreTrainedModel) -> bool:
    """Whether `model` is one of these architectures in float32, without adapters and windows of attention."""
    config = model.config
    if type(model).__name__ not in ARCHITECTURES:
        return False
    linear = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
    biased = {name.rpartition(".")[2] for name, module in linear.items() if module.bias is not None}
    return (
        all(parameter.dtype == torch.float32 for parameter in model.parameters())
        and all(type(module) is nn.Linear for module in linear.values())
        and biased <= {"q_proj", "k_proj", "v_proj"}
        and config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in STATIC_ROPE
        and not getattr(config, "use_sliding_window", False)
    )


class LlamaStep:
    """It copies weights, to where they were before: what a GPU has recorded reads them there."""

    @torch.inference_mode(False)  # weights are written to where nobody is in that mode
    def __init__(self, model: Any, cache: SlotCache, window: int):
        config, d = model.config, model.model.layers[0].self_attn.head_dim
        self._window, self._d = window, d
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._epsilon, self._weights = config.rms_norm_eps, weights(model, window)
        like = self._weights[0].new_empty(1, self._groups, 1, d)
        self._layers = cast(list[Any], cache.layers)
        for layer in self._layers:
            if not layer.is_initialized:
                layer.lazy_initialization(like, like)

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether `model` is what this class computes, on a device that it computes on."""
        return (
            attend is not None
            and model.device.type in DEVICES
            and plain(model)
            and model.model.layers[0].self_attn.head_dim in HEADS
        )

    @torch.no_grad()
    def reload(self, model: Any) -> None:
        for here, weight in zip(self._weights, weights(model, self._window), strict=True):
            here.copy_(weight)

    def logits(self, ids: Tensor, positions: Tensor, slots: Tensor, writes: Tensor) -> Tensor:
        """Logits (n, vocabulary) after tokens `ids` (n,) of threads in `slots` at `positions`, whose keys and
        values go to positions `writes` of their slots."""
        embedding, head, norm, cosine, sine, *layers = self._weights
        hidden, width, epsilon = embedding[ids], embedding.shape[1:], self._epsilon
        heads, groups, d = self._heads, self._groups, self._d
        shared = 1 << (heads // groups - 1).bit_length()
        for place, layer in enumerate(self._layers):
            before, after, projection, bias, norms, output, gate_up, down = layers[8 * place : 8 * place + 8]
            projected = rms_norm(hidden, width, before, epsilon) @ projection.t()
            attended = torch.empty_like(projected[:, : heads * d], memory_format=torch.contiguous_format)
            attend[len(ids), groups](
                projected, bias, norms, cosine, sine, positions, slots, writes, layer.keys, layer.values,
                attended, epsilon, d**-0.5, self._window + 1, biased=len(bias) > 0, normed=len(norms) > 0,
                heads=heads, groups=groups, d=d, shared=shared, block=max(8, BLOCK // shared),
            )  # fmt: skip
            hidden.addmm_(attended, output.t())
            gate, up = (rms_norm(hidden, width, after, epsilon) @ gate_up.t()).chunk(2, 1)
            hidden.addmm_(silu(gate).mul_(up), down.t())
        return rms_norm(hidden, width, norm, epsilon) @ head.t()


@torch.no_grad()
def weights(model: Any, window: int) -> list[Tensor]:
    """Copies of embedding, output layer, last norm, cosines and sines (window + 1, d), and eight a layer."""
    inner = model.model
    positions = torch.arange(window + 1, device=model.device)[None]
    cosine, sine = (table[0] for table in inner.rotary_emb(inner.embed_tokens.weight, positions))
    sine = torch.cat([-sine[:, : sine.shape[1] // 2], sine[:, sine.shape[1] // 2 :]], 1)  # of what it turns
    whole = inner.embed_tokens.weight, model.lm_head.weight, inner.norm.weight, cosine, sine
    return [tensor.clone() for tensor in chain(whole, *map(_of_layer, inner.layers))]


def _of_layer(layer: Any) -> tuple[Tensor, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    parts = attention.q_proj, attention.k_proj, attention.v_proj
    projection = torch.cat([part.weight for part in parts])
    none = projection.new_empty(0)
    bias = torch.cat([none if part.bias is None else part.bias for part in parts])
    norms = [getattr(attention, name).weight for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    return (
        layer.input_layernorm.weight, layer.post_attention_layernorm.weight, projection, bias,
        torch.cat([none, *norms]), attention.o_proj.weight,
        torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), mlp.down_proj.weight,
    )  # fmt: skip
