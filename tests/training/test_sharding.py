"""The copy that sharded weights are gathered into; what shards them is in tests/processes."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from trl.trainer.utils import add_fused_lm_head

from apr.core.errors import ParamsError
from apr.core.params import Model
from apr.training.checkpoint import new_model
from apr.training.sharding import before_sharding, gather


def trainer(model, **state):
    return SimpleNamespace(model=model, accelerator=SimpleNamespace(state=SimpleNamespace(**state)))


@pytest.fixture
def fsdp(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")


def test_without_fsdp_it_is_the_model_itself():
    model = torch.nn.Linear(1, 1)
    assert before_sharding(trainer(model)) is None
    assert gather(model, None) is model


def test_a_device_on_which_accelerate_does_not_shard_is_an_error(fsdp):
    with pytest.raises(ParamsError, match="Accelerate has no FSDP on this device; allowed: "):
        before_sharding(trainer(torch.nn.Linear(1, 1)))


def test_gradients_are_added_in_float32(fsdp):
    plugin = SimpleNamespace(mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16))
    before_sharding(trainer(torch.nn.Linear(1, 1), fsdp_plugin=plugin))
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.float32)


@pytest.mark.parametrize("tied", [True, False])
def test_the_copy_computes_what_the_model_does_and_shares_nothing(tied, fsdp):
    sizes = Model(layers=1, hidden=16, heads=2, kv_heads=1, ffn=16, tie_embeddings=tied)
    model = new_model(sizes, vocabulary_size=10, pad=0, window=8, seed=0)
    ids = torch.tensor([[1, 2, 3]])
    add_fused_lm_head(model)  # as trl does, by a new method of this object
    skeleton = before_sharding(trainer(model, fsdp_plugin=SimpleNamespace(mixed_precision_policy=None)))
    assert all(p.device.type == "meta" for p in skeleton.parameters())
    expected = model(input_ids=ids).logits
    copy = gather(model, skeleton)
    model.forward = model.model.forward = None
    assert torch.equal(copy(input_ids=ids).logits, expected)
    assert (copy.lm_head.weight is copy.model.embed_tokens.weight) is tied
    assert all(p.device.type == "meta" for p in skeleton.parameters())
