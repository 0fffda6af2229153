"""MultiheadAttention against torch.nn's, over its options."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import backend_params, use
from torch.utils.checkpoint import checkpoint

import pyflash
import pyflash.nn as nn
from tests.nn.module_helpers import BACKENDS, MODES, Same, assert_same, pair, quiet

CONSTRUCTORS = [  # MultiheadAttention(12, 3, ...), why
    ({}, "default"),
    ({"batch_first": True}, "batch first"),
    ({"bias": False, "batch_first": True}, "no bias"),
    ({"kdim": 5, "vdim": 7}, "separate projections"),
    ({"add_bias_kv": True}, "one learned key more"),
    ({"add_zero_attn": True, "add_bias_kv": True, "batch_first": True}, "two keys more"),
]
INPUTS = ["self", "cross", "separate", "unbatched"]


def masks(batch, heads, seqlen_q, seqlen_k, batched):
    """attn_mask, key_padding_mask, is_causal, need_weights, average_attn_weights, why."""
    hidden = torch.rand(seqlen_q, seqlen_k) < 0.3
    hidden[:, 0] = False
    per_head = torch.rand(batch * heads if batched else heads, seqlen_q, seqlen_k) < 0.3
    per_head[..., 0] = False
    added = torch.randn(seqlen_q, seqlen_k)
    padding = torch.zeros(batch, seqlen_k, dtype=torch.bool)
    padding[:, -1] = True
    added_padding = torch.randn(batch, seqlen_k)
    if not batched:
        padding, added_padding = padding[0], added_padding[0]
    causal = torch.nn.Transformer.generate_square_subsequent_mask(max(seqlen_q, seqlen_k))[:seqlen_q, :seqlen_k]
    return [
        (None, None, False, False, True, "nothing"),
        (None, None, False, True, True, "averaged weights"),
        (None, None, False, True, False, "weights of each head"),
        (hidden, None, False, False, True, "bool mask"),
        (hidden, padding, False, True, True, "bool mask and padding"),
        (per_head, padding, False, False, True, "bool mask of each head and padding"),
        (added, None, False, False, True, "float mask"),
        (torch.randn(per_head.shape), None, False, True, False, "float mask of each head"),
        (added, added_padding, False, False, True, "float mask and padding"),
        (None, padding, False, False, True, "padding"),
        (hidden, added_padding, False, False, True, "bool mask, float padding"),
        (added, padding, False, True, True, "float mask, bool padding"),
        (causal, None, True, False, True, "the causal hint"),
        (causal, None, True, True, True, "the causal hint with weights"),
        (causal, padding, True, False, True, "the causal hint with padding"),
        (hidden, None, True, False, True, "a wrong causal hint: it alone decides"),
    ]


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("options", "why"), CONSTRUCTORS, ids=[row[1] for row in CONSTRUCTORS])
def test_multi_head_attention(options, why, inputs):
    if "kdim" in options and inputs in ("self", "cross"):
        inputs, options = "cross", {"kdim": 5, "vdim": 5}
    ours, theirs = pair(nn.MultiheadAttention, torch.nn.MultiheadAttention, 12, 3, **options)
    seqlen_q, seqlen_k, batch = 4, 4 if inputs == "self" else 6, 2

    def sequence(length, features):
        shape = (length, features) if inputs == "unbatched" else (length, batch, features)
        if options.get("batch_first") and inputs != "unbatched":
            shape = (batch, length, features)
        return torch.randn(shape)

    query, key = sequence(seqlen_q, 12), sequence(seqlen_k, theirs.kdim)
    args = {
        "self": [query, Same(0), Same(0)],
        "cross": [query, key, Same(1)],
        "separate": [query, key, sequence(seqlen_k, theirs.vdim)],
        "unbatched": [query, key, sequence(seqlen_k, theirs.vdim)],
    }[inputs]
    for row in masks(batch, 3, seqlen_q, seqlen_k, inputs != "unbatched"):
        attn_mask, padding, is_causal, need_weights, average, why_mask = row
        kwargs = {
            "attn_mask": attn_mask,
            "key_padding_mask": padding,
            "is_causal": is_causal,
            "need_weights": need_weights,
            "average_attn_weights": average,
        }
        # In eval without gradients torch's fast path reads the mask and not the hint: see docs/differences.md.
        modes = MODES[:2] if why_mask.startswith("a wrong") else MODES
        assert_same(ours, theirs, args, kwargs, modes=modes, backends=BACKENDS[-1:])


@pytest.mark.parametrize("average", [True, False], ids=["averaged", "of each head"])
@pytest.mark.parametrize("backend", backend_params("triton"))
def test_weights_in_triton(backend, average):
    """Values and gradients through the output and the weights; for the other backends above."""
    mha = nn.MultiheadAttention(12, 3, batch_first=True)
    hidden = torch.rand(5, 7) < 0.3
    hidden[:, 0] = False
    padding = torch.arange(7) >= torch.tensor([7, 4])[:, None]
    x, memory = torch.randn(2, 5, 12, requires_grad=True), torch.randn(2, 7, 12, requires_grad=True)
    for attn_mask in (None, hidden, torch.randn(5, 7)):
        found = []
        for module, name in ((pyflash.restore(copy.deepcopy(mha)), "torch"), (mha, backend)):
            with quiet(), use(name):
                out, weights = module(x, memory, memory, padding, True, attn_mask, average)
            leaves = [x, memory, *module.parameters()]
            found.append((out, weights, *torch.autograd.grad(out.sum() + weights.square().sum(), leaves)))
        for expected, ours in zip(*found):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("backend", [*BACKENDS, *backend_params("triton")])
def test_masked_queries_give_zeros(backend):
    """Where torch gives NaN when it returns the weights."""
    for batch_first in (False, True):
        mha = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        x = torch.randn(3, 3, 8, requires_grad=True)
        mask = torch.zeros(3, 3, dtype=torch.bool)
        mask[1] = True
        for attn_mask in (mask, torch.zeros(3, 3).masked_fill(mask, float("-inf"))):
            with use(backend):
                out, weights = mha(x, x, x, attn_mask=attn_mask)
                bare, _ = mha(x, x, x, attn_mask=attn_mask, need_weights=False)
                (dx,) = torch.autograd.grad(out.sum() + weights.square().sum(), x)
            rows = out[:, 1] if batch_first else out[1]
            assert torch.equal(rows, mha.out_proj.bias.expand_as(rows))
            assert not weights[:, 1].any() and weights.isfinite().all() and dx.isfinite().all()
            torch.testing.assert_close(out, bare)


@pytest.mark.parametrize("backend", [*BACKENDS, *backend_params("triton")])
@pytest.mark.parametrize("seqlen_k", [0, 300])
def test_weights_of_few_and_many_keys(seqlen_k, backend):
    mha = nn.MultiheadAttention(8, 2, batch_first=True)
    x, memory = torch.randn(2, 3, 8), torch.randn(2, seqlen_k, 8)
    expected, expected_weights = pyflash.restore(copy.deepcopy(mha))(x, memory, memory)
    with use(backend):
        out, weights = mha(x, memory, memory)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights, expected_weights)


def test_mismatched_masks_warn_as_in_torch():
    x = torch.randn(3, 2, 8)
    for n in (nn, torch.nn):
        with pytest.warns(UserWarning, match="mismatched key_padding_mask and attn_mask") as caught:
            n.MultiheadAttention(8, 2)(
                x, x, x, attn_mask=torch.zeros(3, 3), key_padding_mask=torch.zeros(2, 3, dtype=torch.bool)
            )
        assert len(caught) == 1


@pytest.mark.parametrize("backend", [*BACKENDS, *backend_params("triton")])
@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_dropout(backend, need_weights):
    mha = nn.MultiheadAttention(64, 4, dropout=0.5, batch_first=True)
    x = torch.randn(4, 64, 64)

    def call(seed):
        torch.manual_seed(seed)
        with use(backend):
            return mha(x, x, x, need_weights=need_weights, average_attn_weights=False)

    out, weights = call(1)
    assert torch.equal(out, call(1)[0]) and not torch.equal(out, call(2)[0])
    if need_weights:  # the weights are those that were applied
        assert 0.45 < (weights == 0).float().mean() < 0.55
        v = F.linear(x, mha.in_proj_weight[128:], mha.in_proj_bias[128:]).view(4, 64, 4, 16).transpose(1, 2)
        applied = F.linear((weights @ v).transpose(1, 2).flatten(-2), mha.out_proj.weight, mha.out_proj.bias)
        torch.testing.assert_close(out, applied, rtol=1e-4, atol=1e-4)
    mha.eval()
    assert torch.equal(call(1)[0], call(2)[0])


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_a_checkpoint_drops_what_its_forward_dropped(use_reentrant, need_weights):
    """A reentrant one computes without gradients first: whose dropout it is must not depend on them."""

    for width, steps in ((16, 7), (64, 200)):
        attend = nn.MultiheadAttention(width, 2, 0.4, batch_first=True)

        def model(x, attend=attend):
            out, weights = attend(x, x, x, need_weights=need_weights)
            query = x.unflatten(-1, (2, -1)).transpose(1, 2)
            more = pyflash.functional.scaled_dot_product_attention(query, query, query, dropout_p=0.3)
            return out + more.sum() + (0 if weights is None else weights.square().sum())

        found = []
        for recompute in (False, True):
            x = torch.linspace(-1, 1, 2 * steps * width).view(2, steps, width).requires_grad_()
            torch.manual_seed(3)
            out = checkpoint(model, x, use_reentrant=use_reentrant) if recompute else model(x)
            out.square().sum().backward()
            found.append((out.detach(), x.grad))
        torch.testing.assert_close(*found)
