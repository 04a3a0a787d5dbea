"""Rollouts decoded by servers that take the policy's weights before every step (`rl.servers`).

They read them from a directory, under a version that is their hash and that every answer has to name: a
server that was started again since, or that another run has given other weights, is at fault, and is not
asked again.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import broadcast_object_list
from peft import PeftModel

from apr.core.files import remove
from apr.core.hashes import digest, hash_tree
from apr.core.params import Params
from apr.engine.servers.endpoints import load_weights
from apr.engine.servers.protocols import wire_of
from apr.language import Language
from apr.rollouts.decoding import connect, orchestrate
from apr.rollouts.rollout import Request, Rollout
from apr.training.checkpoint import save_checkpoint
from apr.training.rl.trainer import PackedGRPOTrainer


class ServedPolicy:
    """The policy behind `rl.servers`; `folder` is where its weights are while they are being read."""

    def __init__(self, params: Params, language: Language, checkpoint: Path, folder: Path):
        assert params.rl.servers is not None
        self._servers, self._params = params.rl.servers, params
        self._language, self._checkpoint, self._folder = language, checkpoint, folder

    def decode(self, requests: Sequence[Request], trainer: PackedGRPOTrainer) -> list[Rollout]:
        """Returns rollouts by the weights that the model of `trainer` has now. Every process has to call it.

        Raises `ServerError` if a server did not take them, and while decoding.
        """
        servers = self._servers
        wire = wire_of(servers.backend, servers.served_model, self._publish(trainer))
        with connect(self._params, self._language, servers.endpoints, wire) as decoder:
            return orchestrate(self._params, self._language, decoder).run(requests)

    def _publish(self, trainer: PackedGRPOTrainer) -> str:
        """The version under which the servers now have the weights."""
        versions, servers = [""], self._servers
        model = trainer.whole(first_only=True)
        if trainer.accelerator.is_main_process:
            if isinstance(model, PeftModel):  # merged and split again, the base would not be what it was
                model = copy.deepcopy(model).merge_and_unload()
            save_checkpoint(model, self._checkpoint, self._folder)
            versions = [digest(hash_tree(self._folder, self._folder))]
            load_weights(servers.backend, servers.endpoints, self._folder, versions[0],
                         self._params.engine.timeout)  # fmt: skip
            remove(self._folder)
        return str(broadcast_object_list(versions)[0])
