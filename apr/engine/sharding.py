"""Models whose weights FSDP has dealt out over processes, in one piece again."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from apr.core.process import sharded


def without_weights(model: Any) -> Any:
    """A copy of `model` to `gather` its weights into, made before Accelerate shards it; None without FSDP."""
    if not sharded():
        return None
    bare = {id(p): torch.nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    copy = deepcopy(model, bare)
    for module in copy.modules():
        vars(module).pop("forward", None)  # TRL's own, which would call that of `model`
    return copy


def add_up_in_float32(accelerator: Any) -> None:
    """Of gradients: with bfloat16 weights Accelerate would have FSDP round them before they are added."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)


def gather(model: Any, bare: Any, first_only: bool = False) -> Any:
    """`model`, or where it is sharded a copy of `bare` with its weights as they are now.

    All processes have to call this. With `first_only` the first one has the weights, on the CPU, and the
    others have nothing to use.
    """
    if bare is None:
        return model
    options = StateDictOptions(full_state_dict=True, cpu_offload=first_only)
    weights = get_model_state_dict(model, options=options)
    if not weights:
        return bare
    copy = deepcopy(bare)
    copy.load_state_dict(weights, assign=True)
    copy.tie_weights()
    return copy.to(copy.get_input_embeddings().weight.device)  # what is not weights, too
