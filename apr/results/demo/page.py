"""`results/demo.html`: the weights of two models, the scripts that decode with them, and what draws it."""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy import ndarray as Array
from torch import Tensor

import apr.results.threads  # noqa: F401  (draw.js)
from apr.core.errors import CheckpointError
from apr.core.files import write_text
from apr.core.params import Params
from apr.engine.checkpoint import load_model
from apr.language import Vocabulary
from apr.language.tokenizer import load_language
from apr.results.render import render

PROBLEMS = ("numbers", "number_range", "target_range", "max_value")
"""Settings of problems, by which the page draws some and says what the models know."""
ARCHITECTURES = ("LlamaForCausalLM", "Qwen3ForCausalLM")
LANES = (("parallel", "APR", "spawns threads"), ("serial", "SoS+", "one thread"))
BITS = 20
"""Of a weight, sign included. Two of them are five bytes, and both models fit in 6 MB as base64."""


def make_demo(params: Params, parallel: Path, serial: Path, out: Path) -> None:
    """Writes the page on which the checkpoints `parallel` and `serial` decode side by side.

    Raises `CheckpointError` if one is not a Llama or Qwen3 in float32 with this project's own tokens, or if
    they do not have the same.
    """
    vocabularies = [load_language(path).vocabulary for path in (parallel, serial)]
    own, other = vocabularies
    if not isinstance(own, Vocabulary) or own.settings != other.settings:
        raise CheckpointError(f"{parallel}, {serial}: not both in this project's own tokens")
    grammar, engine, problems = params.grammar, params.engine, cast(Any, params.problems)
    limits = {"window": grammar.window, "tokens": engine.max_tokens, "children": grammar.max_children,
              "depth": engine.max_depth}  # fmt: skip
    packed = {"parallel": pack(parallel, grammar.window), "serial": pack(serial, grammar.window)}
    setup = {
        "words": own.words, "numbers": own.number_tokens, "limits": limits,
        "problems": {name: getattr(problems, name) for name in PROBLEMS},
        "models": {name: spec for name, (spec, _) in packed.items()},
    }  # fmt: skip
    weights = {name: b64encode(data).decode() for name, (_, data) in packed.items()}
    write_text(out, render("demo/page.html", setup=setup, weights=weights, params=params, lanes=LANES))


def pack(checkpoint: Path, window: int) -> tuple[dict[str, Any], bytes]:
    """Returns the shapes and settings of a model, and its weights, as `unpack` and `Model` in model.js read
    them: vectors in float32, and of each matrix a float32 scale for each row, then integers of `BITS` bits.

    A weight is off by at most 1e-6 of the largest in its row. Raises `CheckpointError`.
    """
    model: Any = load_model(checkpoint, "cpu")
    config = model.config
    if type(model).__name__ not in ARCHITECTURES or config.hidden_act != "silu":
        raise CheckpointError(f"{checkpoint}: {type(model).__name__} is not allowed; allowed for the demo: "
                              f"{', '.join(ARCHITECTURES)}")  # fmt: skip
    floats, integers, shapes = [], [], []
    for name, tensor in tensors_of(model):
        values = tensor.detach().float().numpy()
        if values.ndim == 1:
            shapes.append([name, len(values), 0])
            floats.append(values)
        else:
            shapes.append([name, *values.shape])
            scales, numbers = quantised(values)
            floats.append(scales)
            integers.append(in_bits(numbers))
    rotary = model.model.rotary_emb
    settings = {
        "layers": config.num_hidden_layers, "hidden": config.hidden_size, "ffn": config.intermediate_size,
        "heads": config.num_attention_heads, "groups": config.num_key_value_heads,
        "head": model.model.layers[0].self_attn.head_dim, "epsilon": config.rms_norm_eps, "window": window,
        "frequencies": rotary.inv_freq.float().tolist(), "scaling": float(rotary.attention_scaling),
    }  # fmt: skip
    data = b"".join(part.astype("<f4").tobytes() for part in floats) + b"".join(integers)
    return {"config": settings, "shapes": shapes}, data


def tensors_of(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields what `Model` in model.js computes with, by its names there."""
    from torch import cat

    yield "embedding", model.model.embed_tokens.weight
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        yield f"{index}.norm", layer.input_layernorm.weight
        yield f"{index}.projection", cat([attention.q_proj.weight, attention.k_proj.weight,
                                          attention.v_proj.weight])  # fmt: skip
        if hasattr(attention, "q_norm"):
            yield f"{index}.query_norm", attention.q_norm.weight
            yield f"{index}.key_norm", attention.k_norm.weight
        yield f"{index}.output", attention.o_proj.weight
        yield f"{index}.mlp_norm", layer.post_attention_layernorm.weight
        yield f"{index}.gate_up", cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        yield f"{index}.down", mlp.down_proj.weight
    yield "norm", model.model.norm.weight
    if not model.config.tie_word_embeddings:
        yield "head", model.lm_head.weight


def quantised(values: Array) -> tuple[Array, Array]:
    """Returns a float32 scale for each row of `values` (rows, columns), and the integers, of `BITS` bits with
    their sign, that it multiplies."""
    most = 2 ** (BITS - 1) - 1
    scales = (np.abs(values).max(axis=1) / most).astype(np.float32)
    numbers = np.rint(values.astype(np.float64) / np.where(scales, scales, 1)[:, None].astype(np.float64))
    return scales, np.clip(numbers, -most, most).astype(np.int64)


def in_bits(numbers: Array) -> bytes:
    """Returns integers of `BITS` bits, two of them in five bytes, lowest bits first."""
    shifted = (numbers + 2 ** (BITS - 1)).ravel().astype("<u8")
    pairs = shifted[0::2] | shifted[1::2] << np.uint64(BITS)
    return pairs.view(np.uint8).reshape(-1, 8)[:, :5].tobytes()
