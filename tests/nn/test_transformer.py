"""MultiheadAttention, encoder, decoder and Transformer against torch.nn's, over their options."""

import contextlib
import copy
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import backend_params, use
from torch.utils.checkpoint import checkpoint

import pyflash
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.nn.module_helpers import BACKENDS, MODES, Same, assert_same, option_id, pair, quiet, results

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


ENCODER_LAYERS = [
    {},
    {"batch_first": True},
    {"batch_first": True, "norm_first": True, "activation": "gelu"},
    {"norm_first": True, "bias": False},
    {"activation": F.silu, "layer_norm_eps": 1e-2, "batch_first": True},
    {"activation": torch.nn.GELU("tanh"), "norm_first": True},
    {"activation": torch.sin},
    {"activation": torch.nn.Softplus(), "batch_first": True, "bias": False},
]


@pytest.mark.parametrize("options", ENCODER_LAYERS, ids=option_id)
def test_encoder_layer(options):
    ours, theirs = pair(nn.TransformerEncoderLayer, torch.nn.TransformerEncoderLayer, 12, 2, 20, dropout=0.0, **options)
    replaced = pyflash.replace(copy.deepcopy(theirs))
    x = torch.randn(3, 5, 12)
    batch, length = (3, 5) if options.get("batch_first") else (5, 3)
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[1, -1] = True
    causal = torch.nn.Transformer.generate_square_subsequent_mask(length)
    for kwargs in (
        {},
        {"src_mask": causal, "is_causal": True},
        {"src_mask": causal != 0, "src_key_padding_mask": padding},
    ):
        assert_same([ours, replaced], theirs, [x], kwargs, backends=BACKENDS[-1:])
    # In eval without gradients torch's fast path takes every float but 0 for a masked key: docs/differences.md.
    finite = {"src_key_padding_mask": torch.randn(batch, length)}
    assert_same(ours, theirs, [x], finite, modes=MODES[:2], backends=BACKENDS[-1:])
    assert_same(ours, theirs, [x[0]])  # unbatched


@pytest.mark.parametrize("options", ENCODER_LAYERS, ids=option_id)
def test_decoder_layer(options):
    ours, theirs = pair(nn.TransformerDecoderLayer, torch.nn.TransformerDecoderLayer, 12, 2, 20, dropout=0.0, **options)
    replaced = pyflash.replace(copy.deepcopy(theirs))
    tgt, memory = torch.randn(4, 4, 12), torch.randn(4, 4, 12)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(4)
    padding = torch.zeros(4, 4, dtype=torch.bool)
    padding[0, 2:] = True
    for kwargs in (
        {},
        {"tgt_mask": causal, "tgt_is_causal": True, "memory_key_padding_mask": padding},
        {"tgt_mask": causal, "memory_mask": torch.randn(4, 4), "tgt_key_padding_mask": padding.float()},
    ):
        assert_same([ours, replaced], theirs, [tgt, memory], kwargs, backends=BACKENDS[-1:])
    assert_same(ours, theirs, [tgt[0], memory[0]])


def encoders(layers=2, norm=True, nested=True, **options):
    """Ours, and torch's, with the same weights."""
    options = {"dropout": 0.0, "batch_first": True, **options}
    return pair(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(12, 2, 20, **options), layers, nn.LayerNorm(12) if norm else None, nested
        ),
        lambda: torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(12, 2, 20, **options),
            layers,
            torch.nn.LayerNorm(12) if norm else None,
            nested,
        ),
    )


def paddings():
    left_aligned = torch.arange(6) >= torch.tensor([6, 3, 1])[:, None]
    return {
        "left aligned": left_aligned,
        "not aligned": left_aligned.flip(1),
        "nothing": torch.zeros(3, 6, dtype=torch.bool),
        "float": torch.zeros(3, 6).masked_fill(left_aligned, float("-inf")),
        "finite float": torch.zeros(3, 6).masked_fill(left_aligned, 0.5),
    }


@pytest.mark.parametrize("padding", paddings())
@pytest.mark.parametrize(
    "options",
    [{}, {"nested": False}, {"norm": False}, {"norm_first": True}, {"activation": F.silu}, {"batch_first": False}],
    ids=option_id,
)
def test_padded_rows_come_out_as_torchs(padding, options):
    """In evaluation without gradients torch returns zeros for them (before the last norm), under its conditions."""
    mask = paddings()[padding]
    ours, theirs = encoders(**options)
    x = torch.randn(3, 6, 12)
    if options.get("batch_first") is False:
        x = x.transpose(0, 1)
    # As in test_encoder_layer; through a NestedTensor torch drops those keys and rows, and so do we.
    modes = MODES[:2] if padding == "finite float" and not theirs.use_nested_tensor else MODES
    replaced = pyflash.replace(copy.deepcopy(theirs))
    assert_same([ours, replaced], theirs, [x], {"src_key_padding_mask": mask}, modes=modes)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6)
    if padding == "float":
        assert_same(ours, theirs, [x], {"src_key_padding_mask": mask, "mask": causal}, backends=BACKENDS[-1:])


def test_zeros_follow_the_switch_of_torch():
    ours, theirs = encoders(norm=False)
    mask = paddings()["left aligned"]
    x = torch.randn(3, 6, 12)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        assert not ours(x, src_key_padding_mask=mask)[mask].any()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            torch.testing.assert_close(ours(x, src_key_padding_mask=mask), theirs(x, src_key_padding_mask=mask))
            assert ours(x, src_key_padding_mask=mask)[mask].any()
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert ours(x, src_key_padding_mask=mask)[mask].any()  # gradients are on


@pytest.mark.parametrize("how", ["compiled", "exported"])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("padding", paddings())
@pytest.mark.slow
def test_padded_rows_of_a_graph_are_those_of_the_eager_model(padding, gradients, how):
    """One rule in every mode, torch's eager one, and what a decoder makes of them: torch's own graph leaves them."""
    mask = paddings()[padding]
    ours, theirs = pair(nn.Transformer, torch.nn.Transformer, 12, 2, 2, 1, 20, dropout=0.0, batch_first=True)
    src, tgt = torch.randn(3, 6, 12), torch.randn(3, 4, 12)
    ours.eval(), theirs.eval()
    with torch.set_grad_enabled(gradients), quiet():
        if how == "compiled":
            graph = torch.compile(ours, fullgraph=True, backend="aot_eager")
        else:
            graph = torch.export.export(ours, (src, tgt), {"src_key_padding_mask": mask}).module()
        found, eager = (m(src, tgt, src_key_padding_mask=mask) for m in (graph, ours))
        torch.testing.assert_close(found, eager)
        if (
            padding != "finite float" or not gradients
        ):  # a float other than -inf is added where torch makes no nested one
            torch.testing.assert_close(found, theirs(src, tgt, src_key_padding_mask=mask))


@pytest.mark.parametrize("kind", ["layer", "encoder", "attention"])
def test_a_nested_tensor_goes_to_torch_and_is_counted(kind):
    ours, theirs = encoders()
    ours.load_state_dict(theirs.state_dict())
    with quiet():
        x = torch.nested.nested_tensor([torch.randn(3, 12), torch.randn(5, 12)])
    pick = {
        "encoder": lambda m: m,
        "layer": lambda m: m.layers[0],
        "attention": lambda m: lambda x: m.layers[0].self_attn(x, x, x, need_weights=False)[0],
    }[kind]
    ours.eval(), theirs.eval()
    before = sum(n for (_, _, reason), n in backends.counts.items() if reason == "NestedTensor input")
    with torch.no_grad(), quiet(), use("cpu"):
        found, expected = pick(ours)(x), pick(theirs)(x)
    assert found.is_nested
    torch.testing.assert_close(found.to_padded_tensor(0.0), expected.to_padded_tensor(0.0))
    assert sum(n for (_, _, reason), n in backends.counts.items() if reason == "NestedTensor input") > before


def test_our_layers_in_torchs_encoder():
    """It hands them a NestedTensor: torch's fast path takes it, on our parameters."""
    _, theirs = encoders()
    pyflash.replace(mixed := copy.deepcopy(theirs), exclude=torch.nn.TransformerEncoder)
    assert type(mixed) is torch.nn.TransformerEncoder and type(mixed.layers[0]) is nn.TransformerEncoderLayer
    assert_same(mixed, theirs, [torch.randn(3, 6, 12)], {"src_key_padding_mask": paddings()["left aligned"]})


def test_causal_masks_are_detected(monkeypatch):
    """A causal mask without a hint becomes is_causal: no mask is read."""
    ours, theirs = encoders()
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6)
    x = torch.randn(3, 6, 12)
    for mask in (causal, causal != 0):
        assert_same(ours, theirs, [x], {"mask": mask})
    seen = []
    monkeypatch.setattr(
        "pyflash.ops.attention.multi_head.scaled_dot_product_attention",
        lambda q, k, v, mask, p, is_causal: seen.append((mask, is_causal)) or q,
    )
    ours(x, mask=causal != 0)
    assert seen == [(None, True)] * 2


@pytest.mark.parametrize("options", ENCODER_LAYERS, ids=option_id)
def test_small_calls_are_torchs_under_auto(options):
    """As a whole without gradients, and counted; with gradients all but the attention, which has second derivatives."""
    ours, theirs = pair(nn.TransformerEncoderLayer, torch.nn.TransformerEncoderLayer, 12, 2, 20, dropout=0.0, **options)
    before, x = backends.counts.copy(), [torch.randn(3, 5, 12)]
    assert_same(ours, theirs, x, modes=["eval without gradients"], backends=["auto"])
    added = backends.counts - before
    assert added["multi_head_attention_forward", "torch", "small input: torch's own call is cheaper"] >= 1
    assert not any(backend != "torch" for _, backend, _ in added)
    assert_same(ours, theirs, x, modes=["train", "eval"], backends=["auto"])
    added = backends.counts - before
    assert {name for name, backend, _ in added if backend != "torch"} == {"attention"}


def test_decoder_stack():
    ours, theirs = pair(
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 2, 20, 0.0), 2, nn.LayerNorm(12)),
        lambda: torch.nn.TransformerDecoder(
            torch.nn.TransformerDecoderLayer(12, 2, 20, 0.0), 2, torch.nn.LayerNorm(12)
        ),
    )
    causal = torch.nn.Transformer.generate_square_subsequent_mask(4)
    for kwargs in ({}, {"tgt_mask": causal}, {"tgt_mask": causal != 0, "memory_mask": torch.randn(4, 6)}):
        assert_same(ours, theirs, [torch.randn(4, 3, 12), torch.randn(6, 3, 12)], kwargs)


@pytest.mark.slow
def test_the_transformer_of_the_documentation():
    """torch.nn.Transformer(512, 8, 6, 6) on src (10, 32, 512), tgt (20, 32, 512)."""
    torch.manual_seed(0)
    with quiet():
        theirs = torch.nn.Transformer(512, 8, 6, 6).eval()
    ours = pyflash.replace(copy.deepcopy(theirs))
    src, tgt = torch.randn(10, 32, 512), torch.randn(20, 32, 512)
    with torch.no_grad():
        expected = theirs(src, tgt)
        for backend in BACKENDS:
            with use(backend):
                torch.testing.assert_close(ours(src, tgt), expected, rtol=1e-4, atol=1e-4)


def test_transformer_with_given_parts():
    given = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(12, 2), 1, enable_nested_tensor=False)
    with quiet():
        made = nn.Transformer(12, 2, 1, 1, custom_encoder=given)
    assert made.encoder is given and type(given) is torch.nn.TransformerEncoder
    assert type(made.decoder) is nn.TransformerDecoder
    activation = torch.nn.ReLU()
    assert type(nn.TransformerEncoderLayer(12, 2, activation=activation).activation) is torch.nn.ReLU


# Compilers, autocast


def model_cases():
    x = torch.randn(2, 6, 12)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6)
    padding = torch.arange(6) >= torch.tensor([6, 4])[:, None]
    with quiet():
        return {
            "attention": (nn.MultiheadAttention(12, 2, batch_first=True), (x, x, x), {"key_padding_mask": padding}),
            "encoder": (encoders()[0], (x,), {"mask": causal, "is_causal": True}),
            "padded encoder": (encoders()[0], (x,), {"src_key_padding_mask": padding}),
            "decoder layer": (nn.TransformerDecoderLayer(12, 2, 20, 0.0, norm_first=True), (x, x), {}),
        }


@pytest.mark.parametrize("case", model_cases())
@pytest.mark.slow
def test_compiles_without_graph_breaks(case):
    module, args, kwargs = model_cases()[case]
    torch._dynamo.reset()
    expected = results(module, args, kwargs, "train", "cpu")
    module.compile(fullgraph=True, backend="aot_eager")
    for a, b in zip(results(module, args, kwargs, "train", "cpu"), expected):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", model_cases())
def test_exports(case):
    module, args, kwargs = model_cases()[case]
    module.eval()
    with use("cpu"), torch.no_grad():
        exported = torch.export.export(module, args, kwargs).module()
        torch.testing.assert_close(exported(*args, **kwargs), module(*args, **kwargs))


STRICT = [False, True] if torch.__version__ >= (2, 10) else [False]  # 2.9 does not follow a layer into `_sa_block`


@pytest.mark.slow
@pytest.mark.parametrize("strict", STRICT)
def test_an_exported_program_serves_sizes_beyond_every_threshold(strict):
    """Exported where `auto` leaves everything to torch for its size, called where it leaves nothing."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 1), nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64)).eval()
    for p in model.parameters():
        p.requires_grad_(False)
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("steps", min=2, max=4096)}
    program = torch.export.export(model, (torch.randn(2, 9, 64),), dynamic_shapes=(sizes,), strict=strict)
    for shape in ((3, 4, 64), (2, 600, 64), (8, 1200, 64)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_can_be_trained(strict):
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm, self.layers = nn.Linear(8, 8), nn.LayerNorm(8), nn.LSTM(8, 8)

        def forward(self, x):
            q = self.norm(x + pyflash.functional.gelu(self.linear(x)))
            y = x + pyflash.functional.attention(q, q, q, window_size=(2, 0))
            return y + self.layers(y)[0]

    x, model = torch.randn(3, 5, 8), Residual()
    with use("cpu"):
        program = torch.export.export(model, (x,), strict=strict).module()
        program(x).square().sum().backward()
        model(x).square().sum().backward()
    theirs = dict(program.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(theirs[name].grad, p.grad, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend):
    ours, theirs = encoders()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 6, 12)
    with torch.autocast("cpu", torch.bfloat16), use(backend):
        found, expected = ours(x), theirs(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    for norm_first, batch_first in itertools.product([False, True], repeat=2):
        ours, theirs = encoders(norm_first=norm_first, batch_first=batch_first)
        x = torch.randn(3, 6, 12, dtype=dtype)
        assert_same(ours.to(dtype), theirs.to(dtype), [x], backends=BACKENDS[-1:])


def test_no_warning_that_torch_does_not_give():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, _ = encoders()
        ours(torch.randn(3, 6, 12), src_key_padding_mask=torch.zeros(3, 6, dtype=torch.bool))


def refusing_fast_path(layer):
    """Ways to keep torch from its fast path, or to have the call watched: name, what is changed, contexts around the call."""

    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    def set_eps():
        layer.norm2.eps = 1e-3

    def add_child():
        layer.more = torch.nn.Identity()
        layer.more.register_forward_hook(lambda *_: None)

    nothing = contextlib.nullcontext
    return {
        "as built": (lambda: None, nothing),
        "two eps": (set_eps, nothing),
        "a hook on the layer": (lambda: layer.register_forward_hook(lambda *_: None), nothing),
        "a child with a hook": (add_child, nothing),
        "a hook on the activation": (lambda: layer.activation.register_forward_hook(lambda *_: None), nothing),
        "a function mode": (lambda: None, Watching),
        "autocast": (lambda: None, lambda: torch.autocast("cpu", torch.bfloat16)),
    }


TAKEN = "as built", "autocast"  # of a CPU


@pytest.mark.parametrize("name", list(refusing_fast_path(None)))
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"activation": torch.nn.GELU()}, {"batch_first": False}])
def test_a_tiny_encoder_layer_goes_torchs_fast_path_where_torch_goes_it(name, options, monkeypatch):
    torch.manual_seed(0)
    options = {"activation": torch.nn.ReLU(), "batch_first": True, **options}
    theirs = torch.nn.TransformerEncoderLayer(16, 2, 32, **copy.deepcopy(options)).eval()
    ours = pyflash.replace(copy.deepcopy(theirs))
    calls, results, fast = [], [], torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: calls.append(args) or fast(*args))
    inputs = torch.linspace(-1, 1, 96).view(2, 3, 16), torch.linspace(-1, 1, 48).view(3, 16)
    for layer in (theirs, ours):
        change, around = refusing_fast_path(layer)[name]
        change()
        with torch.no_grad(), around():
            results.append([layer(x) for x in inputs] + [len(calls)])
            calls.clear()
    assert all(torch.equal(a, b) for a, b in zip(results[0][:2], results[1][:2]))
    assert results[0][2] == results[1][2] == (name in TAKEN and options["batch_first"])


def test_a_tiny_encoder_layer_reads_its_weights_in_every_call():
    layer = pyflash.replace(torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval())
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        before = layer(x)
        layer.linear2.weight.data.zero_()
        layer.linear2.bias = torch.nn.Parameter(torch.full((16,), 1e3))
        assert not torch.equal(layer(x), before)
        zeroed = layer(x)
        del layer.linear1.weight
        layer.linear1.weight = torch.zeros(32, 16)  # no parameter any more
        assert torch.equal(layer(x), zeroed)  # linear2 is zeros
        layer.train()
        backends.counts.clear()
        layer(x)
        assert any(name == "add_layer_norm" for name, _, _ in backends.counts)
