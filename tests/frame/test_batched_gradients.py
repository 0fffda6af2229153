"""Gradients batched by vmap: is_grads_batched, torch.func.vmap over torch.autograd.grad, vectorize=True, gradcheck."""

from __future__ import annotations

import pytest
import torch
from helpers import cpu_isas, use

import pyflash.functional as F
import pyflash.nn as nn

WIDE = {"dtype": torch.float64}
OFFSETS, LENGTHS = torch.tensor([0, 2, 6], dtype=torch.int32), torch.tensor([2, 0])


def functions():
    """name -> a function of x [3, 2, 4]: every autograd Function there is."""
    torch.manual_seed(2)
    weight, bias, q = torch.randn(5, 4, **WIDE), torch.randn(5, **WIDE), torch.randn(1, 2, 4, 4, **WIDE)
    heads = torch.tensor([0.5, 0.25], **WIDE)
    layers, cell = nn.LSTM(4, 3, 2, bidirectional=True, **WIDE), nn.GRUCell(4, 3, **WIDE)
    attend = nn.MultiheadAttention(4, 2, **WIDE)

    def varlen(x):
        x = x.reshape(6, 1, 4)
        return F.attention_varlen(x, x, x, OFFSETS, OFFSETS, 4, 4)

    def dropout(x):
        torch.manual_seed(3)
        return F.dropout(x, 0.5)

    return {
        "linear": lambda x: F.linear(x, weight, bias),
        "linear_act": lambda x: F.linear_act(x, weight, bias, "gelu"),
        "weight of linear": lambda x: F.linear(q, x[0]),
        "layer_norm": lambda x: F.layer_norm(x, (4,), weight[0], bias[:4]),
        "add_layer_norm": lambda x: F.add_layer_norm(x, x.sin(), (4,), weight[0], bias[:4])[0],
        "local_response_norm": lambda x: F.local_response_norm(x, 3, 0.5),
        "gan_discriminator_loss": lambda x: F.gan_discriminator_loss(x, x.sin(), "non_saturating")[None],
        "huber_loss": lambda x: F.huber_loss(x, x.sin(), delta=0.1, reduction="none"),
        "kl_div": lambda x: F.kl_div(x, x.exp(), reduction="sum")[None],
        "nll_loss": lambda x: F.nll_loss(x, torch.ones(3, 4, dtype=torch.int64), reduction="none"),
        "normalize": lambda x: F.normalize(x, dim=2),
        "avg_pool1d": lambda x: F.avg_pool1d(x, 3, 2, 1),
        "max_pool1d": lambda x: F.max_pool1d(x, 3, 2, 1),
        "max_unpool1d": lambda x: F.max_unpool1d(x, torch.arange(x.shape[-1]).expand(x.shape), 1),
        "embedding": lambda x: F.embedding(torch.tensor([1, 0, 1]), x[0], padding_idx=0),
        "embedding_bag": lambda x: F.embedding_bag(torch.tensor([[1, 0], [1, 1]]), x[0], mode="mean"),
        "rotary_embedding": lambda x: F.rotary_embedding(x, x, weight[:2, :2], weight[:2, 2:4])[0],
        "relu": F.relu,
        "gelu": F.gelu,
        "tanh": F.tanh,
        "tanh, other strides": lambda x: F.tanh(x.mT) * 2,
        "dropout": dropout,
        "prelu": lambda x: F.prelu(x.sin(), weight[0, :1]),
        "gated": lambda x: F.gated_act(F.glu(x), x[..., :2]),
        "bias_act": lambda x: F.bias_act(x, bias[:4], dim=-1, act="swish"),
        "softmax": lambda x: F.softmax(x, 1),
        "log_softmax": lambda x: F.log_softmax(x.mT, -1),
        "attention": lambda x: F.attention(x[None], x[None], x[None], alibi_slopes=heads[:1].expand(3)),
        "lse": lambda x: F.attention(x[None], x[None], x[None], return_lse=True)[1],
        "bias of attention": lambda x: F.attention(q, q, q, attn_mask=x[:, :1].expand(3, 4, 4)[None, :1]),
        "attention_varlen": varlen,
        "attention weights": lambda x: attend(x, x, x)[1],
        "lstm": lambda x: layers(x)[0],
        "cell states": lambda x: layers(x, return_cells=True)[2],
        "ragged": lambda x: layers(x, lengths=LENGTHS)[1][0],
        "cell": lambda x: cell(x[0]),
    }


@pytest.mark.parametrize("name", functions())
@pytest.mark.parametrize("backend", ["auto", *(["cpu"] if cpu_isas() else [])])
def test_as_one_by_one(name, backend):
    function = functions()[name]
    x = torch.randn(3, 2, 4, requires_grad=True, **WIDE)

    def grad(y, v, **options):
        return torch.autograd.grad(y, x, v, retain_graph=True, **options)[0]

    with use(backend):
        y = function(x)
        for order in ("first", "second"):
            v = torch.randn(3, *y.shape, **WIDE)
            expected = torch.stack([grad(y, one, materialize_grads=True) for one in v])
            torch.testing.assert_close(grad(y, v, is_grads_batched=True, materialize_grads=True), expected)
            found = torch.func.vmap(lambda one: grad(y, one, materialize_grads=True))(v)  # noqa: B023
            torch.testing.assert_close(found, expected)
            if order == "first":
                y = grad(y, v[0], create_graph=True)
                if not y.requires_grad:
                    break


@pytest.mark.parametrize("name", ["linear_act", "add_layer_norm", "gelu", "attention", "lstm"])
@pytest.mark.parametrize("backend", ["auto", *(["cpu"] if cpu_isas() else [])])
def test_vectorized_jacobian_and_hessian(name, backend):
    function, x = functions()[name], torch.randn(3, 2, 4, **WIDE)
    jacobian, hessian = torch.autograd.functional.jacobian, torch.autograd.functional.hessian

    def total(x):
        return function(x).square().sum()

    with use(backend):
        torch.testing.assert_close(jacobian(function, x, vectorize=True), jacobian(function, x))
        torch.testing.assert_close(hessian(total, x, vectorize=True), hessian(total, x))
        x.requires_grad_()
        assert torch.autograd.gradcheck(function, x, check_batched_grad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, x, check_batched_grad=True, fast_mode=True)
