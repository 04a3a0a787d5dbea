"""A model and its KV cache, three ways: fused on a CPU, padded anywhere, in fixed shapes on a GPU."""

from typing import Protocol

from numpy import ndarray as Array
from transformers import PreTrainedModel

from apr.engine.runners.fused import FusedLlama
from apr.engine.runners.padded import PaddedModel
from apr.engine.runners.static import StaticModel
from apr.engine.scheduler import Batch


class Runner(Protocol):
    """A model with a KV cache of a row per slot."""

    ragged: bool
    """Whether rows of different lengths share a pass at no cost."""

    def __init__(self, model: PreTrainedModel, slots: int, window: int) -> None: ...

    def sample(self, batch: Batch) -> tuple[Array, Array]:
        """Feeds the tokens of `batch`, and draws the next of each thread, as `apr.engine.sampling.sample`."""

    def reload(self, model: PreTrainedModel) -> None:
        """Goes on with the weights of `model`, which has the shapes of the one before."""


def runner_of(model: PreTrainedModel) -> type[Runner]:
    if FusedLlama.supports(model):
        return FusedLlama
    return StaticModel if model.device.type == "cuda" else PaddedModel
