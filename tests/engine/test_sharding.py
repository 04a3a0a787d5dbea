"""The copy that sharded weights are gathered into; what shards them is in tests/processes."""

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from apr.core.params import Model
from apr.engine.checkpoint import new_model
from apr.engine.sharding import gather, without_weights


def test_without_fsdp_it_is_the_model_itself():
    assert without_weights(torch.nn.Linear(1, 1)) is None
    model = torch.nn.Linear(1, 1)
    assert gather(model, None) is model


@pytest.mark.parametrize("tied", [True, False])
def test_the_copy_computes_what_the_model_does_and_shares_nothing(tied, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    sizes = Model(layers=1, hidden=16, heads=2, kv_heads=1, ffn=16, tie_embeddings=tied)
    model = new_model(sizes, vocabulary_size=10, pad=0, window=8, seed=0)
    ids = torch.tensor([[1, 2, 3]])
    add_fused_lm_head(model)  # as trl does, by a new method of this object
    bare = without_weights(model)
    assert all(p.device.type == "meta" for p in bare.parameters())
    expected = model(input_ids=ids).logits
    copy = gather(model, bare)
    model.forward = model.model.forward = None
    assert torch.equal(copy(input_ids=ids).logits, expected)
    assert (copy.lm_head.weight is copy.model.embed_tokens.weight) is tied
    assert all(p.device.type == "meta" for p in bare.parameters())
