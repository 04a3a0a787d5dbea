"""A model and its KV cache, three ways: in C on a CPU, padded anywhere, in fixed shapes on a GPU, there of
Llamas and Qwens by a kernel."""

from typing import Protocol

from numpy import ndarray as Array
from transformers import PreTrainedModel

from apr.engine.runners.native import NativeModel
from apr.engine.runners.padded import PaddedModel
from apr.engine.runners.static import StaticModel
from apr.engine.scheduler import Table


class Runner(Protocol):
    """A model with a KV cache of a row per slot."""

    ragged: bool
    """Whether rows of different lengths share a pass at no cost."""

    def __init__(self, model: PreTrainedModel, slots: int, window: int) -> None: ...

    def advance(self, table: Table, slots: Array, workers: int) -> float:
        """Appends a token to each of the threads in `slots` (n,), drawn as by `apr.engine.sampling.sample`,
        or some more while it does not end. Up to `workers` threads of the operating system take part.

        Returns the share of its time in which prompts or joined tokens were read.
        """

    def reload(self, model: PreTrainedModel) -> None:
        """Goes on with the weights of `model`, which has the shapes of the one before."""


def runner_of(model: PreTrainedModel) -> type[Runner]:
    if NativeModel.supports(model):
        return NativeModel
    return StaticModel if model.device.type == "cuda" else PaddedModel
