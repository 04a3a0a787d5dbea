"""Rollouts decoded by servers that take the policy's weights before every step (`rl.servers`).

To vLLM TRL sends them, before it asks for rollouts. SGLang and `apr serve` read them from a directory, under
a version that is their hash and that every answer has to name: a server that was started again since, or that
another run has given other weights, is at fault, and is not asked again.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel

from apr.core.errors import ParamsError
from apr.core.files import remove
from apr.core.params import Params, RolloutServers
from apr.core.recipe import digest, hash_tree
from apr.engine.remote import RemoteDecoder
from apr.engine.wires import load_weights, wire_of
from apr.language.language import Language
from apr.rollouts.decoding import connect
from apr.training.checkpoint import save_checkpoint
from apr.training.sharding import gather


def check_servers(servers: RolloutServers | None) -> None:
    """Raises `ParamsError` if TRL cannot send weights to vLLM from here."""
    if servers and servers.backend == "vllm" and not (find_spec("vllm") and torch.cuda.is_available()):
        raise ParamsError("rl.servers.backend: 'vllm' is not allowed; allowed: 'sglang', as the package vllm "
                          "and a GPU, from which weights are sent, are not both here")


def trainer_options(params: Params) -> dict[str, Any]:
    """What TRL has to know of vLLM. The sampler's log-probabilities are the old policy's: nothing is left to
    be corrected for."""
    servers = params.rl.servers
    if servers is None or servers.backend != "vllm":
        return {}
    return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": servers.endpoints[0],
            "vllm_group_port": servers.group_port, "vllm_server_timeout": params.engine.timeout,
            "vllm_importance_sampling_correction": False}  # fmt: skip


class ServedPolicy:
    """The policy behind `servers`; `folder` is where its weights are for as long as they are being read."""

    def __init__(self, params: Params, language: Language, checkpoint: Path, folder: Path):
        assert params.rl.servers is not None
        self._servers, self._params = params.rl.servers, params
        self._language, self._checkpoint, self._folder = language, checkpoint, folder

    @contextmanager
    def decoder(self, trainer: Any, bare: Any) -> Iterator[RemoteDecoder]:
        """Decodes with the weights that the model of `trainer` has now; `bare` as in `gather`. Every process
        has to call it.

        Raises `ServerError` if a server did not take them, and while decoding.
        """
        servers = self._servers
        version = None if servers.backend == "vllm" else self._publish(trainer, bare)
        wire = wire_of(servers.backend, servers.served_model, version)
        with connect(self._params, self._language, servers.endpoints, wire) as decoder:
            yield decoder

    def _publish(self, trainer: Any, bare: Any) -> str:
        """The version under which the servers now have the weights."""
        versions = [""]
        model = gather(trainer.accelerator.unwrap_model(trainer.model), bare, first_only=True)
        if trainer.accelerator.is_main_process:
            if isinstance(model, PeftModel):  # merged and split again, the base would not be what it was
                model = copy.deepcopy(model).merge_and_unload()
            save_checkpoint(model, self._checkpoint, self._folder)
            versions = [digest(hash_tree(self._folder, self._folder))]
            load_weights(self._servers.endpoints, self._folder, versions[0], self._params.engine.timeout)
            remove(self._folder)
        return str(broadcast_object_list(versions)[0])
