"""Decoder layers on a CPU: matrix products by torch, what lies between them by `layers.c`, with gradients.

Half of a step's time is not matrix products, once those are quick. On processors with AVX-512 BF16 or AMX
products of bfloat16 are two to five times as fast as of float32, where `torch.mm` is called for them
directly; autocast, which casts anew what several operations read, is slower than float32. The kernels read
and write what products do in their precision; weights, the residual stream, sums and the gradients of weights
are float32.
"""

import ctypes
import warnings
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import rms_norm

from apr.core.compiled import CompilerError, load_library
from apr.training.attention import thread_lengths

SOURCE = Path(__file__).with_name("layers.c")
OPTIONS = ("-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd")
INT, FLOAT, ARRAY = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
FUNCTIONS = {
    "apr_norm": (INT, INT, FLOAT) + (ARRAY,) * 4,
    "apr_norm_backward": (INT, INT) + (ARRAY,) * 6,
    "apr_swiglu": (INT, INT, ARRAY, ARRAY),
    "apr_swiglu_backward": (INT, INT) + (ARRAY,) * 3,
    "apr_attend": (ARRAY,) * 3,
    "apr_attend_backward": (ARRAY,) * 7,
}
ARCHITECTURES = ("LlamaForCausalLM", "Qwen3ForCausalLM")
LANES = 16
"""A head's size is a multiple of it."""


def quickest(device: torch.device) -> torch.dtype:
    """What a device multiplies quickest: bfloat16 on a GPU, and on a processor that has units for it."""
    return torch.bfloat16 if device.type == "cuda" or bfloat16_units() else torch.float32


def bfloat16_units() -> bool:
    """Whether this processor can multiply bfloat16; those that cannot take ten times as long."""
    units = torch.cpu.get_capabilities()
    return any(units.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def use_kernels(
    model: Any, device: torch.device, precision: torch.dtype, of_gradients: torch.dtype | None = None
) -> bool:
    """Has the layers of `model`, which is to compute on `device`, do so by the kernels; returns whether.

    It does not on a GPU, for other architectures, with adapters, and without a C compiler. For packed rows
    only (`apr.training.attention`); a pass with a KV cache goes the model's own way. `precision`, float32 or
    bfloat16, is that of the operands of the layers' matrix products; `of_gradients`, if given, that of the
    products of the backward pass. On a GPU it fuses norms (`fuse_norms`), whatever else the model has.
    """
    if device.type == "cuda":
        fuse_norms(model)
    if device.type != "cpu" or not _supports(model) or _library(precision) is None:
        return False
    precisions = precision, of_gradients or precision
    for layer in model.model.layers:
        layer.forward = partial(_forward, layer, layer.forward, model.config, precisions)
    return True


def fuse_norms(model: torch.nn.Module) -> None:
    """Has each RMSNorm be one operation, where `transformers` makes seven, with as many kernels backwards."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = partial(_norm, module)


def _norm(module: Any, hidden: Tensor) -> Tensor:
    weight = module.weight
    normed = rms_norm(hidden.float(), weight.shape, weight.float(), module.variance_epsilon)
    return normed.to(torch.promote_types(hidden.dtype, weight.dtype))


def _supports(model: Any) -> bool:
    config = model.config
    return (
        type(model).__name__ in ARCHITECTURES
        and all(p.dtype == torch.float32 for p in model.parameters())
        and all(type(module) is torch.nn.Linear and module.bias is None
                for name, module in model.named_modules() if name.endswith("_proj"))
        and config.hidden_act == "silu"
        and config._attn_implementation == "packed"
        and model.model.layers[0].self_attn.head_dim % LANES == 0
        and not config.attention_dropout
    )  # fmt: skip


@cache
def _library(precision: torch.dtype) -> Any:
    options = ("-DBFLOAT16",) if precision == torch.bfloat16 else ()
    try:
        return load_library(SOURCE, FUNCTIONS, OPTIONS + options)
    except CompilerError as error:
        warnings.warn(f"training on the CPU will be slow: {error}", stacklevel=3)
        return None


def _forward(
    layer: Any, forward: Any, config: Any, precisions: tuple[torch.dtype, torch.dtype],
    hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], position_ids: Tensor,
    past_key_values: Any = None, **others: Any,
) -> Tensor:  # fmt: skip
    """In place of `layer.forward`, for hidden states (B, T, D)."""
    if past_key_values is not None:
        return forward(hidden_states, position_embeddings=position_embeddings, position_ids=position_ids,
                       past_key_values=past_key_values, **others)  # fmt: skip
    shape, attention, mlp = hidden_states.shape, layer.self_attn, layer.mlp
    positions = position_ids if len(position_ids) == shape[0] else position_ids.expand(shape[0], -1)
    angles = [x.expand(*shape[:2], -1).flatten(0, 1).contiguous() for x in position_embeddings]
    norms = (getattr(getattr(attention, name, None), "weight", None) for name in ("q_norm", "k_norm"))
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    return _Layer.apply(
        hidden_states.flatten(0, 1), layer.input_layernorm.weight,
        torch.cat([part.weight for part in parts]), *norms, attention.o_proj.weight,
        layer.post_attention_layernorm.weight, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        mlp.down_proj.weight, _Row(config, attention.head_dim, thread_lengths(positions), angles, precisions),
    ).view(shape)  # fmt: skip


class _Attention(ctypes.Structure):
    """As in `layers.c`."""

    _fields_ = [*((name, INT) for name in ("threads", "most", "heads", "groups", "d")),
                *((name, FLOAT) for name in ("epsilon", "scale")),
                *((name, ARRAY) for name in ("starts", "cosine", "sine", "query_norm", "key_norm"))]


class _Row:
    """What a layer's pass over a row has beside hidden states and weights."""

    def __init__(
        self, config: Any, d: int, lengths: list[int], angles: list[Tensor],
        precisions: tuple[torch.dtype, torch.dtype],
    ):  # fmt: skip
        (self.precision, self.of_gradients), self.epsilon = precisions, config.rms_norm_eps
        self.heads, self.groups, self.d = config.num_attention_heads, config.num_key_value_heads, d
        self.threads, self.most = len(lengths), max(lengths)
        self.starts, self.angles = torch.tensor([0, *lengths]).cumsum(0), angles

    def attention(self, *norms: Tensor | None) -> Any:
        return ctypes.byref(_Attention(
            self.threads, self.most, self.heads, self.groups, self.d, self.epsilon, self.d**-0.5,
            *_at(self.starts, *self.angles, *norms),
        ))  # fmt: skip


def _at(*tensors: Tensor | None) -> list[int | None]:
    """Where tensors lie that something else holds: a kernel must not be given the address of a temporary."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Returns (rows, n) of x (rows, k) and a weight (n, k).

    In float32 by oneDNN: MKL, which `torch.mm` calls, leaves half of the width of an AMD core's units idle.
    """
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return x @ weight.t()


class _Layer(torch.autograd.Function):
    """Hidden states (T, D) of a row through one layer. `projection` (queries, keys, values) and `gate_up`
    (the gate, and what it multiplies) are weights of several matrices, one below the other."""

    @staticmethod
    def forward(ctx, hidden, norm, projection, query_norm, key_norm, output, mlp_norm, gate_up, down, row):
        call, (length, width) = _library(row.precision), hidden.shape
        hidden = hidden.contiguous()
        projection, output, gate_up, down = (x.to(row.precision) for x in (projection, output, gate_up, down))
        inverse, mlp_inverse = hidden.new_empty(2, length)
        normed, mlp_normed = output.new_empty(2, length, width)
        call.apr_norm(length, width, row.epsilon, *_at(hidden, norm, inverse, normed))
        projected = product(normed, projection)
        attended = output.new_empty(length, row.heads * row.d)
        call.apr_attend(row.attention(query_norm, key_norm), *_at(projected, attended))
        middle = product(attended, output).float().add_(hidden)
        call.apr_norm(length, width, row.epsilon, *_at(middle, mlp_norm, mlp_inverse, mlp_normed))
        gated = product(mlp_normed, gate_up)
        inner = output.new_empty(length, down.shape[1])
        call.apr_swiglu(*inner.shape, *_at(gated, inner))
        ctx.row = row
        ctx.save_for_backward(norm, query_norm, key_norm, mlp_norm, hidden, inverse, middle, mlp_inverse,
                              projection, output, gate_up, down,
                              normed, projected, attended, mlp_normed, gated, inner)  # fmt: skip
        return product(inner, down).float().add_(middle)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        norm, query_norm, key_norm, mlp_norm, hidden, inverse, middle, mlp_inverse = ctx.saved_tensors[:8]
        row, call, shape = ctx.row, _library(ctx.row.of_gradients), hidden.shape
        operands = (x.to(row.of_gradients) for x in ctx.saved_tensors[8:])
        projection, output, gate_up, down, normed, projected, attended, mlp_normed, gated, inner = operands
        total = grad.clone(memory_format=torch.contiguous_format)  # of the residual stream, from end to start
        above = grad.to(row.of_gradients)
        down_grad, inner_grad = above.t() @ inner, above @ down
        gated_grad = torch.empty_like(gated)
        call.apr_swiglu_backward(*inner.shape, *_at(gated, inner_grad, gated_grad))
        gate_up_grad, normed_grad = gated_grad.t() @ mlp_normed, gated_grad @ gate_up
        norm_grads = norm.new_zeros(2, len(norm))
        call.apr_norm_backward(*shape, *_at(middle, mlp_norm, mlp_inverse, normed_grad, total, norm_grads[1]))
        above = total.to(row.of_gradients)
        output_grad, attended_grad = above.t() @ attended, above @ output
        projected_grad = torch.empty_like(projected)
        turns = [None if x is None else torch.zeros_like(x) for x in (query_norm, key_norm)]
        call.apr_attend_backward(row.attention(query_norm, key_norm),
                                 *_at(projected, attended, attended_grad, projected_grad, *turns))
        projection_grad, normed_grad = projected_grad.t() @ normed, projected_grad @ projection
        call.apr_norm_backward(*shape, *_at(hidden, norm, inverse, normed_grad, total, norm_grads[0]))
        weights = (x.float() for x in (projection_grad, output_grad, gate_up_grad, down_grad))
        projection_grad, output_grad, gate_up_grad, down_grad = weights
        return (total, norm_grads[0], projection_grad, *turns, output_grad, norm_grads[1], gate_up_grad,
                down_grad, None)  # fmt: skip
