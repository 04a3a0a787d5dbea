"""A tiny Llama in which many tokens are likely."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


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
