"""A tiny Llama in which many tokens are likely, and what stands for CUDA graphs where there is no GPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from apr.engine.runners import graphs


@pytest.fixture(scope="module")
def tiny_llama():
    """Makes one with random weights, the same each time."""

    def make(vocabulary: int, window: int, **shape) -> LlamaForCausalLM:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            max_position_embeddings=window, initializer_range=0.2, pad_token_id=None, bos_token_id=None,
            eos_token_id=None, **shape,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()

    return make


class Tape(TorchDispatchMode):
    """The operations of a step, done again on the very tensors that they had when the step was recorded, as
    by a CUDA graph: what came from the host, or from memory that is no longer used, stays as it was.

    Operations that would wait for a GPU, or whose outputs have no fixed shape, are errors.
    """

    def __init__(self):
        super().__init__()
        self.calls: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2"}, name
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output

    def __call__(self):
        for func, args, kwargs, output in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(output), tree_leaves(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def tapes(monkeypatch):
    """All tapes; makes `StaticModel` record its steps on them."""
    made: list[Tape] = []

    def record(step):
        step()  # as on a GPU
        made.append(Tape())
        with made[-1]:
            step()
        return made[-1]

    monkeypatch.setattr(graphs, "recorder", lambda device: record)
    return made
