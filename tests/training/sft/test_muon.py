"""Muon's two halves: matrices move along orthogonalised momentum, the rest exactly as AdamW moves them."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from apr.training.sft.muon import MOMENTUM, Muon, orthogonalize


def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
                    num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    )  # fmt: skip


def test_orthogonalize_keeps_the_singular_vectors_and_flattens_the_values():
    x = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    for matrix, result in zip(x, orthogonalize(x), strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        values = u.T @ result @ v.T
        assert torch.allclose(values, torch.diag(values.diagonal()), atol=1e-4)
        assert ((values.diagonal() > 0.6) & (values.diagonal() < 1.3)).all()
    assert torch.allclose(orthogonalize(x.mT), orthogonalize(x).mT, atol=1e-5)


def test_embeddings_and_norms_move_as_under_adamw():
    ours, theirs = model(), model()
    muon = Muon(ours, learning_rate=0.0, other_learning_rate=1e-2, decay=0.0)
    names = [n for n, p in theirs.named_parameters() if p.ndim == 1 or "embed" in n]
    others = [p for n, p in theirs.named_parameters() if n in names]
    adamw = torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    ids = torch.arange(11)[None]
    for _ in range(3):
        for net, optimizer in ((ours, muon), (theirs, adamw)):
            net.zero_grad()
            net(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    moved = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        assert torch.allclose(moved[name], p, atol=1e-6), name


def test_a_matrix_moves_by_the_rate_along_its_momentum():
    net = model()
    muon = Muon(net, learning_rate=0.1, other_learning_rate=0.0, decay=0.5)
    weight = net.model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    ids = torch.arange(11)[None]
    net(input_ids=ids, labels=ids).loss.backward()
    momentum = (1 - MOMENTUM) * weight.grad
    update = orthogonalize(((1 - MOMENTUM) * weight.grad + MOMENTUM * momentum)[None])[0]
    muon.step()
    assert torch.allclose(weight, before * (1 - 0.1 * 0.5) - 0.1 * update, atol=1e-6)
