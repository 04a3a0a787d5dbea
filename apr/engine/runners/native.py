"""Llamas, Qwen2 and Qwen3 in float32 on the CPU, by `native.c`: whole decoding steps, many to a call.

A call deals the threads into groups, and the groups to the workers. A group makes its steps one after
another, while its keys are in a core's cache. The result is that of the `transformers` model up to rounding,
and the same to the bit whatever the groups, steps and workers.
"""

import ctypes
import warnings
from functools import cache
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor
from transformers import PreTrainedModel

from apr.core.compiled import CompilerError, load_library
from apr.engine.runners.llama import plain
from apr.engine.sampling import NOT_FINITE
from apr.engine.scheduler import Table

GROUP, GROUP_OF_LARGE = 8, 64
"""Most threads of a group: their keys are to fit a core's cache. Weights of more than `CACHED` bytes do not,
and are read from memory in every step, which has to be worth it."""
CACHED = 32 << 20
STEPS, WORK = 25, 1 << 30
"""Most steps of a call, and multiplications of a group in it unless it is one step: a call is to end soon."""

SOURCE = Path(__file__).parents[1] / "native.c"
OPTIONS = ("-fno-math-errno", "-fno-trapping-math", "-fopenmp")
INT, FLOAT, ARRAY = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
PANEL = 32


class _Matrix(ctypes.Structure):
    _fields_ = [("inputs", INT), ("outputs", INT), ("panels", ARRAY)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ARRAY) for name in ("norm", "mlp_norm", "query_norm", "key_norm", "bias")),
        *((name, _Matrix) for name in ("projection", "output", "gate_up", "down")),
        ("keys", ARRAY), ("values", ARRAY),
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, INT) for name in ("layers", "hidden", "heads", "groups")),
        *((name, INT) for name in ("d", "inner", "vocabulary", "window")),
        ("epsilon", FLOAT), ("scale", FLOAT),
        *((name, ARRAY) for name in ("embedding", "norm", "cosine", "sine")),
        ("head", _Matrix), ("layer", ctypes.POINTER(_Layer)),
    ]  # fmt: skip


class _Table(ctypes.Structure):
    _fields_ = [(name, ARRAY) for name in Table.__dataclass_fields__]


FUNCTIONS = {
    "apr_pack": (INT, INT, ARRAY, ARRAY),
    "apr_decode": (ctypes.POINTER(_Model), ctypes.POINTER(_Table), INT, ARRAY, INT, INT, INT, ARRAY),
}


@cache
def load_native() -> ctypes.CDLL | None:
    """The library; None, with a warning, where it cannot be compiled or loaded."""
    try:
        return load_library(SOURCE, FUNCTIONS, OPTIONS, {"apr_decode": INT})
    except CompilerError as error:
        warnings.warn(f"decoding on the CPU will be slow: {error}", stacklevel=2)
        return None


class NativeModel:
    """A `Runner`. It copies weights."""

    ragged = True

    def __init__(self, model: Any, slots: int, window: int):
        self._library: Any = load_native()
        self._window, self._d = window, model.model.layers[0].self_attn.head_dim
        positions = -(-window // PANEL) * PANEL
        size = slots * model.config.num_key_value_heads * positions * self._d + PANEL
        self._caches = [(_mapped_zeros(size), _mapped_zeros(size)) for _ in model.model.layers]
        self.reload(model)
        weights = sum(parameter.numel() for parameter in model.parameters())
        self.group = GROUP if 4 * weights <= CACHED else GROUP_OF_LARGE
        self.steps = max(1, min(STEPS, WORK // (weights * self.group)))

    @staticmethod
    def supports(model: PreTrainedModel) -> bool:
        """Whether `model` is what this class computes, and there is a library to do it."""
        return model.device.type == "cpu" and plain(model) and load_native() is not None

    @torch.no_grad()
    def reload(self, model: Any) -> None:
        config, inner = model.config, model.model
        self._kept: list[Any] = []
        """What the structures point to."""
        rotary = inner.rotary_emb(inner.embed_tokens.weight, torch.arange(self._window)[None])
        layers = (_Layer * len(inner.layers))(*map(self._layer, inner.layers, self._caches))
        self._model = _Model(
            len(layers), config.hidden_size, config.num_attention_heads, config.num_key_value_heads, self._d,
            config.intermediate_size, config.vocab_size, self._window, config.rms_norm_eps, self._d**-0.5,
            self._array(inner.embed_tokens.weight), self._array(inner.norm.weight),
            *(self._array(table[0]) for table in rotary), self._matrix(model.lm_head.weight), layers,
        )  # fmt: skip

    def advance(self, table: Table, slots: Array, workers: int) -> float:
        """Up to `steps` tokens each; where there is one group, no more once a thread has ended, as others may
        wait for it."""
        count, slots, seconds = len(slots), np.array(slots, np.int64), np.zeros(2)
        groups = groups_of(count, self.group, workers)
        arrays = _Table(*(getattr(table, name).ctypes.data for name in Table.__dataclass_fields__))
        fault = self._library.apr_decode(
            self._model, arrays, count, slots.ctypes.data, groups, self.steps, workers, seconds.ctypes.data
        )
        if fault:
            raise FloatingPointError(NOT_FINITE) if fault == 1 else MemoryError("no room to decode in")
        return float(seconds[0] / seconds.sum())

    def _layer(self, layer: Any, cache: tuple[Tensor, Tensor]) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        return _Layer(
            self._array(layer.input_layernorm.weight), self._array(layer.post_attention_layernorm.weight),
            *(None if norm is None else self._array(norm.weight) for norm in norms),
            None if parts[0].bias is None else self._array(torch.cat([part.bias for part in parts])),
            self._matrix(*(part.weight for part in parts)), self._matrix(attention.o_proj.weight),
            self._matrix(mlp.gate_proj.weight, mlp.up_proj.weight), self._matrix(mlp.down_proj.weight),
            *(part.data_ptr() for part in cache),
        )  # fmt: skip

    def _array(self, tensor: Tensor) -> int:
        """Returns the address of its numbers, which are kept."""
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1].data_ptr()

    def _matrix(self, *weights: Tensor) -> _Matrix:
        """Returns weights (outputs, inputs), one below the other, as `native.c` packs them."""
        weight = torch.cat(weights).contiguous()
        outputs, inputs = weight.shape
        panels = torch.empty(-(-outputs // PANEL), inputs, PANEL)
        self._library.apr_pack(outputs, inputs, weight.data_ptr(), panels.data_ptr())
        return _Matrix(inputs, outputs, self._array(panels))


def groups_of(count: int, most: int, workers: int) -> int:
    """Returns in how many groups, of `most` threads or less, workers have equally much to do."""
    return min(count, -(-count // (most * workers)) * workers)


def _mapped_zeros(size: int) -> Tensor:
    """Zeros that take no memory before they are written; those of torch do."""
    return torch.frombuffer(mmap(-1, 4 * size, flags=MAP_PRIVATE | MAP_ANONYMOUS), dtype=torch.float32)
