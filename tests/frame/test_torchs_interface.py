"""What torch's interface is, held of ours: signatures, lazy modules, the words of errors."""

import inspect

import pytest
import torch
from helpers import use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core.public import STANDS_FOR


def parameters_of(function):
    """(name, kind, default) of each parameter; a builtin's from torch's schema of the operator that it calls."""
    if function in torch._jit_internal.boolean_dispatched:  # one function with the indices, one without
        function = torch._jit_internal.boolean_dispatched[function]["if_false"]
    try:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
    except ValueError:
        packet = getattr(torch.ops.aten, function.__name__)
        schema = getattr(packet, "input" if "input" in packet.overloads() else "default")._schema
    return [
        (
            {"self": "input"}.get(a.name, a.name),
            inspect.Parameter.KEYWORD_ONLY if a.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            # Of a list of numbers: documented as None where it is empty, and as one where all are.
            (a.default_value or [None])[0]
            if isinstance(a.default_value, list)
            else a.default_value
            if a.has_default_value()
            else None
            if "?" in str(a.type)
            else inspect.Parameter.empty,
        )
        for a in schema.arguments
    ]


@pytest.mark.parametrize("name", sorted(PF.__all__))
def test_a_function_takes_what_torchs_takes(name):
    ours, functional = getattr(PF, name), getattr(torch.nn.functional, name, None)
    torchs = [theirs for theirs, stand in STANDS_FOR.items() if stand is ours and theirs.__name__ == name]
    if functional in STANDS_FOR:
        torchs = [functional]
    if not torchs:  # torch has no such function, or, of the layers, another one under the name
        assert not hasattr(torch.nn.functional, name)
    for theirs in torchs:
        if not inspect.ismethoddescriptor(theirs):  # torch.Tensor's
            assert parameters_of(ours) == parameters_of(theirs)


ADDED = {"GRU": ["lengths"], "LSTM": ["lengths", "return_cells"], "RNN": ["lengths"]}  # by keyword only


@pytest.mark.parametrize("name", sorted({*nn.__all__} - {"PositionalEncoding"}))
def test_a_module_takes_what_torchs_takes(name):
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    assert parameters_of(ours) == parameters_of(theirs)
    forward, added = parameters_of(ours.forward), ADDED.get(name, [])
    extra = forward[len(forward) - len(added) :]
    assert [(name, kind) for name, kind, _ in extra] == [(name, inspect.Parameter.KEYWORD_ONLY) for name in added]
    assert forward[: len(forward) - len(added)] == parameters_of(theirs.forward)


def test_what_torch_refuses_by_position():
    x = torch.randn(1, 1, 4, 4)
    for functional in (PF, torch.nn.functional):
        with pytest.raises(TypeError):
            functional.scaled_dot_product_attention(x, x, x, None, 0.0, False, 0.5)
        with pytest.raises(TypeError):
            functional.gelu(x, "tanh")


# ---- modules whose sizes the first input tells


@pytest.mark.parametrize("how", ["constructed", "replaced"])
def test_a_lazy_module_becomes_ours(how):
    theirs = torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.GELU(), torch.nn.Sequential(torch.nn.LazyLinear(3)))
    torch.manual_seed(1)
    x = torch.randn(300, 64)
    expected = theirs(x)
    lazy = torch.nn if how != "constructed" else nn
    ours = torch.nn.Sequential(lazy.LazyLinear(8), torch.nn.GELU(), torch.nn.Sequential(lazy.LazyLinear(3)))
    pyflash.replace(ours)
    assert type(ours) is nn.Sequential and type(ours[0]) is nn.LazyLinear
    ours.load_state_dict(theirs.state_dict())
    with use("cpu"):
        torch.testing.assert_close(ours(x), expected)
        assert type(ours[0]) is nn.Linear and type(ours[2][0]) is nn.Linear
        assert "would become" not in str(pyflash.report(ours))
        torch.testing.assert_close(ours(x), expected)
    pyflash.restore(ours)
    assert type(ours[0]) is torch.nn.Linear
    again = pyflash.restore(pyflash.replace(torch.nn.LazyLinear(3)))  # before its first call
    assert again(x).shape == (300, 3) and type(again) is torch.nn.Linear


def test_every_lazy_class_becomes_what_this_package_calls_by_that_name():
    lazy = [name for name in dir(nn) if name.startswith("Lazy") and name != "LazyModuleMixin"]
    assert "LazyLinear" in lazy and "LazyConv2d" in lazy
    for name in lazy:
        become = getattr(nn, name).cls_to_become
        assert become is getattr(nn, become.__name__), name


# ---- torch's words in errors


def zeros(*shape, dtype=torch.float32, **options):
    return torch.zeros(shape, dtype=dtype, **options)


def attended(*shapes, mask=None, **options):
    return lambda f: f.scaled_dot_product_attention(*[zeros(*s) for s in shapes], mask, **options)


def multi_head(*shapes, **options):
    return lambda n: n.MultiheadAttention(12, 3)(*[zeros(*s) for s in shapes], **options)


FOUR = ((2, 4, 3, 8),) * 3
THREE = ((5, 2, 12),) * 3
REFUSED = [  # a phrase of torch's that says what is wrong; a call, of torch.nn.functional or torch.nn
    ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", lambda f: f.linear(zeros(2, 3), zeros(5, 4))),
    (
        "mat1 and mat2 shapes cannot be multiplied (6x3 and 4x5)",
        lambda f: f.linear(zeros(2, 3, 3), zeros(5, 4), zeros(5)),
    ),
    ("size mismatch, got input (2), mat (2x3), vec (4)", lambda f: f.linear(zeros(2, 3), zeros(4))),
    (
        "both arguments to linear need to be at least 1D, but they are 0D and 2D",
        lambda f: f.linear(zeros(), zeros(5, 4)),
    ),
    ("t() expects a tensor with <= 2 dimensions, but self is 3D", lambda f: f.linear(zeros(2, 3), zeros(5, 3, 2))),
    (
        "mat1 and mat2 must have the same dtype, but got Double and Float",
        lambda f: f.linear(zeros(2, 3, dtype=torch.float64), zeros(5, 3), zeros(5)),
    ),
    (
        "self and mat2 must have the same dtype, but got Double and Float",
        lambda f: f.linear(zeros(2, 3), zeros(5, 3), zeros(5, dtype=torch.float64)),
    ),
    (
        "Given normalized_shape=[2, 5], expected input with shape [*, 2, 5], but got input of size[2, 4]",
        lambda f: f.layer_norm(zeros(2, 4), (2, 5)),
    ),
    ("Expected normalized_shape to be at least 1-dimensional", lambda f: f.layer_norm(zeros(2, 4), ())),
    (
        "Expected weight to be of same shape as normalized_shape, but got weight of shape [4] and normalized_shape = [5]",
        lambda f: f.layer_norm(zeros(2, 5), (5,), zeros(4)),
    ),
    ("Expected bias to be of same shape as", lambda f: f.layer_norm(zeros(2, 5), (5,), zeros(5), zeros(4))),
    ("mixed dtype", lambda f: f.layer_norm(zeros(2, 5), (5,), zeros(5, dtype=torch.float64))),
    ("dropout probability has to be between 0 and 1, but got 1.5", lambda f: f.dropout(zeros(4), 1.5)),
    ("dropout probability has to be between 0 and 1, but got -1", lambda n: n.Dropout(-1)),
    ("approximate argument must be either none or tanh", lambda f: f.gelu(zeros(4), approximate="fast")),
    (
        "Expected query, key, and value to all be  at least 2 dimensional, but got query.dim: 1 key.dim: 2 and value.dim: 2",
        attended((4,), (3, 4), (3, 4)),
    ),
    (
        "The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 0",
        attended((2, 4, 3, 8), (3, 4, 3, 8), (3, 4, 3, 8)),
    ),
    (
        "Expected query, key, and value to have the same dtype, but got query.dtype: float key.dtype: double and"
        " value.dtype: c10::Half instead",
        lambda f: f.scaled_dot_product_attention(
            *[zeros(2, 4, dtype=t) for t in (torch.float32, torch.float64, torch.float16)]
        ),
    ),
    (
        "Expected query, key, and value to have the same device type, but got query.device: cpu key.device: meta and",
        lambda f: f.scaled_dot_product_attention(zeros(2, 4), zeros(2, 4, device="meta"), zeros(2, 4)),
    ),
    (
        "Expected attn_mask dtype to be bool or float or to match query dtype, but got attn_mask.dtype: long int and"
        "  query.dtype: float",
        attended(*FOUR, mask=zeros(3, 3, dtype=torch.int64)),
    ),
    (
        "The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 2",
        attended(*FOUR, mask=zeros(4, 3)),
    ),
    ("dropout probability has to be between 0 and 1, but got 1.5", attended(*FOUR, dropout_p=1.5)),
    (
        "Number of heads in key and value must divide the number of heads in",
        attended((2, 4, 3, 8), (2, 3, 3, 8), (2, 3, 3, 8), enable_gqa=True),
    ),
    ("was expecting embedding dimension of 12, but got 6", multi_head((5, 2, 6), *THREE[1:])),
    (
        "key shape torch.Size([5, 2, 12]) does not match value shape torch.Size([3, 2, 12])",
        multi_head(*THREE[1:], (3, 2, 12)),
    ),
    (
        "The shape of the 2D attn_mask is torch.Size([5, 4]), but should be (5, 5).",
        multi_head(*THREE, attn_mask=zeros(5, 4)),
    ),
    (
        "The shape of the 3D attn_mask is torch.Size([6, 5, 4]), but should be (6, 5, 5).",
        multi_head(*THREE, attn_mask=zeros(6, 5, 4)),
    ),
    ("Expected key_padded_mask.shape[0] to be 2, but got 5", multi_head(*THREE, key_padding_mask=zeros(5, 2))),
    ("Expected key_padded_mask.shape[1] to be 5, but got 4", multi_head(*THREE, key_padding_mask=zeros(2, 4))),
    ("Need attn_mask if specifying the is_causal hint", multi_head(*THREE, is_causal=True, need_weights=False)),
    ("mat1 and mat2 shapes cannot be multiplied (10x6 and 12x12)", multi_head(THREE[0], (5, 2, 6), (5, 2, 6))),
    ("mat1 and mat2 shapes cannot be multiplied (2x5 and 4x3)", lambda n: n.Linear(4, 3)(zeros(2, 5))),
    ("Given normalized_shape=[4], expected input with shape [*, 4]", lambda n: n.LayerNorm(4)(zeros(2, 5))),
    (
        "the batch number of src and tgt must be equal",
        lambda n: n.Transformer(12, 3, 1, 1)(zeros(4, 2, 12), zeros(4, 3, 12)),
    ),
    (
        "the feature number of src and tgt must be equal to d_model",
        lambda n: n.Transformer(12, 3, 1, 1)(zeros(4, 2, 12), zeros(4, 2, 11)),
    ),
    ("activation should be relu/gelu, not swish", lambda n: n.TransformerEncoderLayer(12, 3, activation="swish")),
    ("Unknown nonlinearity: x", lambda n: n.RNNCell(4, 5, nonlinearity="x")(zeros(3, 4))),
    ("Unknown nonlinearity 'x'", lambda n: n.RNN(4, 5, nonlinearity="x")),
]


def refused_by(cell):
    def states(*shape):
        return (zeros(*shape),) * 2 if cell == "LSTM" else zeros(*shape)

    def layers(*shape, hx=None, **options):
        return lambda n: getattr(n, cell)(4, 5)(zeros(*shape, **options), hx)

    def one(*shape, hx=None, **options):
        return lambda n: getattr(n, f"{cell}Cell")(4, 5)(zeros(*shape, **options), hx)

    both = "hx and cx" if cell == "LSTM" else "hx"
    return [
        ("input.size(-1) must be equal to input_size. Expected 4, got 6", layers(2, 3, 6)),
        ("Expected input to be 2D or 3D, got 4D", layers(2, 3, 2, 4)),
        ("(1, 3, 5), got [1, 2, 5]", layers(2, 3, 4, hx=states(1, 2, 5))),
        (f"For batched 3-D input, {both} should also be 3-D but got", layers(2, 3, 4, hx=states(1, 5))),
        (f"For unbatched 2-D input, {both} should also be 2-D but got", layers(2, 4, hx=states(1, 1, 5))),
        ("does not match weight dtype", layers(2, 3, 4, dtype=torch.float64)),
        ("have the same dtype, but got Double and Float", one(3, 4, dtype=torch.float64)),
        ("input has inconsistent input_size: got 6 expected 4", one(3, 6)),
        ("Input batch size 3 doesn't match hidden0 batch size 2", one(3, 4, hx=states(2, 5))),
        ("Expected input to be 1D or 2D, got 3D", one(1, 3, 4)),
    ]


REFUSED += [row for cell in ("LSTM", "GRU", "RNN") for row in refused_by(cell)]


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("i", range(len(REFUSED)))
def test_an_error_holds_torchs_phrase(i, backend):
    phrase, call = REFUSED[i]
    names = call.__code__.co_varnames[0]
    for ours in (False, True):
        space = {"f": PF if ours else torch.nn.functional, "n": nn if ours else torch.nn}[names]
        with use(backend if ours else "torch"), pytest.raises(Exception) as raised:
            call(space)
        assert phrase in str(raised.value), "ours" if ours else "torch's"
