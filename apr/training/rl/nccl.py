"""The policy's weights to vLLM over NCCL, by TRL. Never run against a vLLM: that takes two GPUs."""

from importlib.util import find_spec
from typing import Any

import torch

from apr.core.errors import ParamsError
from apr.core.params import Params, RolloutServers


def check_nccl(servers: RolloutServers | None) -> None:
    """Raises `ParamsError` if TRL cannot send weights to vLLM from here."""
    if servers and servers.backend == "vllm" and not (find_spec("vllm") and torch.cuda.is_available()):
        raise ParamsError("rl.servers.backend: 'vllm' is not allowed; allowed: 'sglang', as the package vllm "
                          "and a GPU, from which weights are sent, are not both here")


def nccl_options(params: Params) -> dict[str, Any]:
    """What TRL has to know of vLLM. The sampler's log-probabilities are the old policy's: nothing is left to
    be corrected for."""
    servers = params.rl.servers
    if servers is None or servers.backend != "vllm":
        return {}
    return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": servers.endpoints[0],
            "vllm_group_port": servers.group_port, "vllm_server_timeout": params.engine.timeout,
            "vllm_importance_sampling_correction": False}  # fmt: skip


def send_weights(trainer: Any) -> None:
    """Has vLLM take the weights that the model of `trainer` has now. Every process has to call it."""
    trainer.vllm_generation.sync_weights()
