"""Models whose weights FSDP has dealt out over processes, in one piece again."""

import os
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from apr.core.errors import ParamsError


def sharded() -> bool:
    """Whether `accelerate launch` says that FSDP deals weights out over the processes.

    Raises `ParamsError` if that is not FSDP2.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise ParamsError(f"fsdp_version: {version} is not allowed; allowed: 2")
    return True


def before_sharding(trainer: Any) -> Any:
    """A copy of the trainer's model without weights, to `gather` them into; None without FSDP.

    Has Accelerate, that shards the model when training begins, add gradients in float32 where weights are
    bfloat16, as without FSDP. Raises `ParamsError` if Accelerate will not shard on this device.
    """
    if not sharded():
        return None
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        raise ParamsError("engine.accelerate: Accelerate has no FSDP on this device; allowed: a "
                          "configuration without it")  # fmt: skip
    if plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
    parameters = trainer.model.parameters()
    empty = {id(p): torch.nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in parameters}
    skeleton = deepcopy(trainer.model, empty)
    for module in skeleton.modules():
        vars(module).pop("forward", None)  # TRL's own, which would call that of the model
    return skeleton


def gather(model: Any, skeleton: Any, first_only: bool = False) -> Any:
    """`model`, or where it is sharded a copy of `skeleton` with its weights as they are now.

    All processes have to call this. With `first_only` the first one has the weights, on the CPU, and the
    others have nothing to use.
    """
    if skeleton is None:
        return model
    options = StateDictOptions(full_state_dict=True, cpu_offload=first_only)
    weights = get_model_state_dict(model, options=options)
    if not weights:
        return skeleton
    copy = deepcopy(skeleton)
    copy.load_state_dict(weights, assign=True)
    copy.tie_weights()
    return copy.to(copy.get_input_embeddings().weight.device)  # what is not weights, too
