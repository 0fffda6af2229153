"""Encoder, decoder and Transformer against torch.nn's, over their options."""

import contextlib
import copy
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import use

import pyflash
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.nn.module_helpers import BACKENDS, MODES, assert_same, option_id, pair, quiet, results

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
