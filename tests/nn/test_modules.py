"""Every module against its torch.nn twin: results, names, weights, initialisation, errors; and that ours is ours."""

import copy
import inspect
import pickle

import activations
import pytest
import torch
from helpers import use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.nn._twins import ORIGINALS, TWINS
from tests.nn.module_helpers import BACKENDS, assert_same, pair, quiet

SMALL = [  # name, constructor arguments, input shape
    ("Conv1d", (5, 6, 3), {"dilation": 2, "padding": "same"}, (2, 5, 11)),
    ("Conv2d", (4, 6, 3), {"stride": 2, "padding": 1}, (2, 4, 7, 6)),
    ("Conv2d", (4, 8, (3, 2)), {"groups": 4, "bias": False}, (4, 7, 6)),
    *(
        ("Conv2d", (4, 3, 3), {"padding": (1, 2), "padding_mode": mode}, (2, 4, 7, 6))
        for mode in ("reflect", "replicate", "circular")
    ),
    ("Conv1d", (4, 3, 4), {"padding": "same", "padding_mode": "reflect"}, (2, 4, 7)),
    ("Conv3d", (3, 4, 2), {"padding_mode": "replicate", "padding": 1}, (1, 3, 4, 5, 3)),
    ("ConvTranspose1d", (5, 6, 3), {"stride": 2, "output_padding": 1}, (2, 5, 7)),
    ("ConvTranspose2d", (4, 6, 4), {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 5, 4)),
    ("ConvTranspose3d", (3, 4, 2), {"stride": 2, "bias": False}, (1, 3, 2, 3, 2)),
    ("Linear", (37, 19), {}, (5, 37)),
    ("Linear", (8, 3), {"bias": False}, (2, 3, 4, 8)),
    ("Linear", (4, 4), {}, (4,)),
    ("LayerNorm", (33,), {}, (4, 5, 33)),
    ("LayerNorm", ((3, 7),), {"eps": 1e-3}, (4, 3, 7)),
    ("LayerNorm", (16,), {"bias": False}, (4, 16)),
    ("RMSNorm", (33,), {}, (4, 5, 33)),
    ("RMSNorm", ((3, 7),), {"eps": 1e-3}, (4, 3, 7)),
    ("RMSNorm", (16,), {"elementwise_affine": False}, (4, 16)),
    ("LayerNorm", (16,), {"elementwise_affine": False}, (4, 16)),
    ("Upsample", (), {"scale_factor": 2, "mode": "bilinear"}, (1, 2, 5, 6)),
    ("Upsample", ((3, 4, 5),), {"mode": "trilinear", "align_corners": True}, (1, 2, 5, 6, 3)),
    ("UpsamplingNearest2d", ((7, 9),), {}, (1, 2, 5, 6)),
    ("UpsamplingBilinear2d", (None, 2), {}, (1, 2, 5, 6)),
    *(
        (f"{kind}Pad{dims}d", (2, *value), {}, (1, 2, *(5, 4, 6)[:dims]))
        for kind, *value in (("Zero",), ("Constant", 3.5), ("Reflection",), ("Replication",), ("Circular",))
        for dims in (1, 2, 3)
    ),
    ("ReflectionPad2d", ((1, 2, 3, 0),), {}, (2, 5, 6)),
    ("BatchNorm1d", (7,), {}, (4, 7)),
    ("BatchNorm1d", (7,), {"momentum": None}, (4, 7, 5)),
    ("BatchNorm2d", (5,), {"affine": False}, (3, 5, 4, 3)),
    ("BatchNorm2d", (5,), {"track_running_stats": False}, (3, 5, 4, 3)),
    ("BatchNorm3d", (5,), {"bias": False, "eps": 1e-3}, (3, 5, 2, 4, 3)),
    ("GroupNorm", (2, 6), {}, (3, 6, 5)),
    ("GroupNorm", (3, 6), {"affine": False, "eps": 1e-3}, (3, 6)),
    ("InstanceNorm1d", (5,), {}, (3, 5, 7)),
    ("InstanceNorm2d", (5,), {"affine": True, "track_running_stats": True}, (3, 5, 4, 3)),
    ("Dropout", (0.0,), {}, (4, 16)),
    ("Dropout", (1.0,), {}, (4, 16)),
    ("Dropout1d", (1.0,), {}, (4, 6, 8)),
    ("Dropout2d", (1.0,), {"inplace": False}, (2, 3, 4, 4)),
    ("Dropout3d", (0.0,), {}, (2, 3, 2, 4, 4)),
    ("AlphaDropout", (1.0,), {}, (4, 16)),
    ("FeatureAlphaDropout", (1.0,), {}, (4, 16)),
    *((name, args, {}, (4, 16)) for name, args in activations.MODULES),
    ("PReLU", (), {"init": 0.4}, (4, 5, 6)),
    ("PReLU", (5,), {}, (4, 5, 6)),
    ("RReLU", (0.2, 0.2), {"inplace": False}, (4, 16)),  # one slope to draw from
    ("GLU", (1,), {}, (4, 6, 5)),
]
COMPOSED = [
    ("MultiheadAttention", (12, 3), {}),
    ("MultiheadAttention", (12, 3), {"kdim": 5, "vdim": 7, "add_bias_kv": True, "bias": False}),
    ("TransformerEncoderLayer", (12, 2, 20), {"batch_first": True}),
    ("TransformerDecoderLayer", (12, 2, 20), {"activation": "gelu", "bias": False}),
    ("Transformer", (12, 2, 1, 2, 20), {}),
]
ALL = [row[:3] for row in SMALL] + COMPOSED
IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(ALL)]


@pytest.mark.parametrize(("name", "args", "kwargs", "shape"), SMALL, ids=IDS[: len(SMALL)])
def test_as_torch(name, args, kwargs, shape):
    ours, theirs = pair(getattr(nn, name), getattr(torch.nn, name), *args, **kwargs)
    assert_same(ours, theirs, [torch.randn(shape)], floor_ulp=8, backends=BACKENDS)


@pytest.mark.parametrize(("name", "args", "kwargs"), ALL, ids=IDS)
def test_construction_is_torchs(name, args, kwargs):
    """Seeded weights bit for bit, state_dict both ways, repr, signature, and copies."""
    ours, theirs = pair(getattr(nn, name), getattr(torch.nn, name), *args, **kwargs)
    assert repr(ours) == repr(theirs)
    assert inspect.signature(type(ours)) == inspect.signature(type(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert vars(ours).keys() == vars(theirs).keys()
    assert isinstance(ours, type(theirs))
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert [type(m) for m in copied.modules()] == [type(m) for m in ours.modules()]
        assert all(map(torch.equal, copied.state_dict().values(), ours.state_dict().values()))


def test_every_class_has_its_twins_name():
    # torch.nn does not name these, either.
    internal = {
        torch.nn.modules.linear.NonDynamicallyQuantizableLinear,
        torch.nn.utils.parametrizations._SpectralNorm,
    }
    assert len(TWINS) == len(ORIGINALS) == len(nn.__all__) - 1 + len(internal)  # PositionalEncoding has none
    for theirs, ours in ((theirs, ours) for theirs, ours in TWINS.items() if theirs not in internal):
        assert getattr(nn, theirs.__name__) is ours and getattr(torch.nn, theirs.__name__) is theirs


def test_the_other_names_are_torchs():
    assert nn.Module is torch.nn.Module and nn.ModuleList is torch.nn.ModuleList
    assert "Parameter" in dir(nn) and nn.Parameter is torch.nn.Parameter
    assert nn.PixelShuffle is torch.nn.PixelShuffle and nn.ChannelShuffle is torch.nn.ChannelShuffle
    with pytest.raises(AttributeError, match="Lineer"):
        _ = nn.Lineer


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arguments_raise_as_in_torch(backend):
    def calls(n):
        mha = n.MultiheadAttention(12, 3)
        x = torch.randn(5, 2, 12)
        yield lambda: n.MultiheadAttention(12, 5)
        yield lambda: n.MultiheadAttention(0, 5)
        yield lambda: n.Dropout(1.5)
        yield lambda: n.Linear(4, 3)(torch.randn(2, 5))
        yield lambda: n.LayerNorm(4)(torch.randn(2, 5))
        yield lambda: n.TransformerEncoderLayer(12, 3, activation="swish")
        yield lambda: mha(x[None], x, x)
        yield lambda: mha(x[0], x, x)
        yield lambda: mha(x, x[0], x[0])
        yield lambda: mha(x[..., :6], x, x)
        yield lambda: mha(x, x, x[:3])
        yield lambda: mha(x, x[:, :1], x[:, :1])
        yield lambda: mha(x, x, x, attn_mask=torch.zeros(5, 4))
        yield lambda: mha(x, x, x, attn_mask=torch.zeros(6, 5, 4))
        yield lambda: mha(x, x, x, attn_mask=torch.zeros(5))
        yield lambda: mha(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.int))
        yield lambda: mha(x, x, x, key_padding_mask=torch.zeros(5, 2))
        yield lambda: mha(x, x, x, key_padding_mask=torch.zeros(2, 5, dtype=torch.long))
        yield lambda: mha(x, x, x, key_padding_mask=torch.zeros(5))
        yield lambda: mha(x, x, x, is_causal=True, need_weights=False)
        yield lambda: mha(x[:, 0], x[:, 0], x[:, 0], attn_mask=torch.zeros(2, 5, 5))
        yield lambda: mha(x, x, x, bogus=1)
        yield lambda: n.Transformer(12, 3, 1, 1)(torch.randn(4, 2, 12), torch.randn(4, 3, 12))
        yield lambda: n.Transformer(12, 3, 1, 1)(torch.randn(4, 2, 12), torch.randn(4, 2, 11))

    def error(call):
        try:
            with quiet(), use(backend):
                call()
        except Exception as raised:
            return raised

    for i, (ours, theirs) in enumerate(zip(calls(nn), calls(torch.nn))):
        ours, theirs = error(ours), error(theirs)
        assert theirs is not None, f"call {i}: torch accepts it"
        assert type(ours) is type(theirs), f"call {i}: {ours!r}, torch: {theirs!r}"


try:
    from torch.testing._internal.common_modules import module_db
except ModuleNotFoundError:  # torch does not require what its own tests import
    module_db = []
DATABASE = [info for info in module_db if info.module_cls in TWINS and "Lazy" not in info.name]


def _is_left_to_torch(info, constructor, call) -> bool:
    """linear_cross_entropy of probabilities, and of several losses a row."""
    if info.name != "nn.LinearCrossEntropyLoss":
        return False
    return bool(constructor.kwargs.get("out_features")) or call.args[1].is_floating_point()


@pytest.mark.parametrize("info", DATABASE, ids=lambda info: info.name)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_torchs_own_module_database(info, training):
    """The inputs torch tests its modules with."""
    inputs = info.module_inputs_func(info, "cpu", torch.float32, True, training)
    for sample in inputs:
        constructor, call = sample.constructor_input, sample.forward_input
        if call is None or _is_left_to_torch(info, constructor, call):
            continue
        ours, theirs = pair(TWINS[info.module_cls], info.module_cls, *constructor.args, **constructor.kwargs)
        replaced = pyflash.replace(copy.deepcopy(theirs))
        if "dropout" in constructor.kwargs or any(getattr(m, "p", 0) for m in theirs.modules()):
            for m in (*ours.modules(), *theirs.modules(), *replaced.modules()):
                if isinstance(m, torch.nn.Dropout):
                    m.p = 0.0
                if isinstance(m, torch.nn.MultiheadAttention):
                    m.dropout = 0.0
        for m in (ours, theirs, replaced):
            if isinstance(m, torch.nn.RReLU):
                m.lower = m.upper
        modes = ("train",) if training else ("eval", "eval without gradients")
        constants = (1,) if info.module_cls is torch.nn.SoftMarginLoss else ()  # its target has no gradient in torch
        assert_same(
            [ours, replaced], theirs, call.args, call.kwargs, modes=modes, backends=BACKENDS[-1:], constants=constants
        )


@pytest.mark.parametrize("info", [i for i in DATABASE if i.module_error_inputs_func], ids=lambda info: info.name)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_refusals_of_torchs_own_module_database(info, training, backend):
    """Its exception types, and its words in ours: code that looks for them finds them."""
    for error in info.module_error_inputs_func(info, "cpu", torch.float32, False, training):
        constructor, call = error.module_error_input.constructor_input, error.module_error_input.forward_input
        with use(backend), pytest.raises(error.error_type, match=error.error_regex):
            module = TWINS[info.module_cls](*constructor.args, **constructor.kwargs)
            module(*call.args, **call.kwargs)


@pytest.mark.skipif(not module_db, reason="torch.testing._internal needs expecttest")
def test_the_database_covers_our_modules():
    assert {info.module_cls for info in DATABASE} >= {
        torch.nn.Linear, torch.nn.LayerNorm, torch.nn.GELU, torch.nn.MultiheadAttention,
        torch.nn.TransformerEncoder, torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer,
        torch.nn.Transformer,
    }  # fmt: skip


# Positional encoding


@pytest.mark.parametrize("features", [8, 7])
def test_sinusoidal_encoding_is_the_papers(features):
    encoding = nn.PositionalEncoding(features, max_len=50).weight
    for position in (0, 1, 49):
        for i in range(features):
            angle = torch.tensor(position / 10000 ** ((i - i % 2) / features), dtype=torch.float64)
            expected = angle.sin() if i % 2 == 0 else angle.cos()
            assert abs(encoding[position, i].double() - expected) <= 2**-24


@pytest.mark.parametrize("learned", [False, True])
def test_positional_encoding_adds_a_row_for_each_position(learned):
    x = torch.randn(6, 3, 8)
    encode = nn.PositionalEncoding(8, max_len=10, learned=learned)
    batch_first = nn.PositionalEncoding(8, max_len=10, learned=learned, batch_first=True)
    batch_first.load_state_dict(encode.state_dict())
    expected = x + encode.weight[:6, None]
    assert torch.equal(encode(x), expected)
    assert torch.equal(batch_first(x.transpose(0, 1)), expected.transpose(0, 1))
    assert torch.equal(encode(x[:, 0]), expected[:, 0])
    assert torch.equal(encode(x[2:], offset=2), expected[2:])
    assert list(encode.state_dict()) == (["weight"] if learned else [])
    assert [p.requires_grad for p in encode.parameters()] == ([True] if learned else [])


def test_positional_encoding_refuses():
    encode = nn.PositionalEncoding(8, max_len=4)
    with pytest.raises(ValueError, match="max_len is 4"):
        encode(torch.randn(5, 2, 8))
    with pytest.raises(ValueError, match="max_len is 4"):
        encode(torch.randn(2, 2, 8), offset=3)
    with pytest.raises(ValueError, match="the last one 8"):
        encode(torch.randn(4, 2, 7))
    with pytest.raises(ValueError):
        nn.PositionalEncoding(8, dropout=2.0)
    dropped = nn.PositionalEncoding(8, dropout=1.0)
    assert not dropped(torch.randn(3, 2, 8)).any() and dropped.eval()(torch.randn(3, 2, 8)).any()


# Ours is ours

# What may run beside our kernels: allocation, views, copies, sums, masks; draws of a seed; the mean over heads.
ALLOWED = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_zeros", "zeros", "zeros_like", "ones", "ones_like", "full",
    "fill_", "zero_", "view", "view_as", "_unsafe_view", "_reshape_alias", "reshape", "as_strided", "transpose", "t",
    "permute", "expand", "expand_as", "flatten", "unflatten", "squeeze", "squeeze_", "unsqueeze", "select", "slice",
    "narrow", "split", "split_with_sizes", "chunk", "unbind", "alias", "detach", "detach_", "clone", "contiguous",
    "copy_", "to", "_to_copy", "cat", "stack", "constant_pad_nd", "pad", "add", "add_", "sum", "sum_to_size", "mean",
    "div", "div_", "logical_not", "bitwise_not", "bitwise_or", "__or__", "randint", "random_", "result_type", "numel",
    "resolve_conj", "resolve_neg", "_has_compatible_shallow_copy_type", "lift_fresh", "is_same_size", "select_backward",
    "slice_backward", "unbind_copy", "item", "_local_scalar_dense", "is_nonzero", "masked_fill", "masked_fill_",
    "arange", "resize_", "lt", "eq", "all", "bitwise_and", "__and__",  # is the padding left aligned
    "real", "broadcast_tensors", "unsafe_split",
}  # fmt: skip
FORBIDDEN = ("mm", "bmm", "addmm", "matmul", "linear", "softmax", "layer_norm", "gelu", "relu", "dropout", "bernoulli")


def operations(call):
    """Names of torch's operators that run in `call`, also below ours."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.name.removeprefix("aten::") for event in profile.events() if event.name.startswith("aten::")}


def own_cases():
    x = torch.randn(2, 6, 16)
    pictures = (torch.randn(2, 6, 8, 8),)
    hidden = torch.rand(6, 6) < 0.3
    padding = torch.arange(6) >= torch.tensor([6, 4])[:, None]
    layer = {"dim_feedforward": 32, "batch_first": True}
    with quiet():
        return {
            "Linear": (nn.Linear(16, 8), (x,), {}),
            "Conv2d": (nn.Conv2d(6, 8, 3, padding=1, groups=2), pictures, {}),
            "ConvTranspose2d": (nn.ConvTranspose2d(6, 4, 4, 2), pictures, {}),
            "LayerNorm": (nn.LayerNorm(16), (x,), {}),
            "RMSNorm": (nn.RMSNorm(16), (x,), {}),
            "BatchNorm1d": (nn.BatchNorm1d(6), (x,), {}),
            "GroupNorm": (nn.GroupNorm(3, 6), (x,), {}),
            "InstanceNorm1d": (nn.InstanceNorm1d(6), (x,), {}),
            "Dropout": (nn.Dropout(0.5), (x,), {}),
            "Dropout1d": (nn.Dropout1d(0.5), (x,), {}),
            "FeatureAlphaDropout": (nn.FeatureAlphaDropout(0.5), (x,), {}),
            "ReflectionPad2d": (nn.ReflectionPad2d(2), (x[None],), {}),
            "Upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), (x[None],), {}),
            "ReLU": (nn.ReLU(), (x,), {}),
            "GELU": (nn.GELU(), (x,), {}),
            "SiLU": (nn.SiLU(), (x,), {}),
            "Tanh": (nn.Tanh(), (x,), {}),
            "Sigmoid": (nn.Sigmoid(), (x,), {}),
            "Softmax": (nn.Softmax(-1), (x,), {}),
            "LogSoftmax": (nn.LogSoftmax(1), (x,), {}),
            "Softmin": (nn.Softmin(-1), (x,), {}),
            "Softmax2d": (nn.Softmax2d(), (x,), {}),
            "MultiheadAttention": (
                nn.MultiheadAttention(16, 2, 0.1),
                (x, x, x),
                {"need_weights": False, "attn_mask": hidden[:2, :2]},
            ),
            "MultiheadAttention with weights": (
                nn.MultiheadAttention(16, 2, 0.1, batch_first=True, add_zero_attn=True),
                (x, x + 1, x + 1),
                {"attn_mask": hidden, "key_padding_mask": padding},
            ),
            "TransformerEncoderLayer": (nn.TransformerEncoderLayer(16, 2, **layer), (x,), {"src_mask": hidden}),
            "TransformerDecoderLayer": (
                nn.TransformerDecoderLayer(16, 2, norm_first=True, activation="gelu", **layer),
                (x, x + 1),
                {},
            ),
            "TransformerEncoder": (
                nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, **layer), 2),
                (x,),
                {"src_key_padding_mask": padding},
            ),
            "Transformer": (nn.Transformer(16, 2, 1, 1, **layer), (x, x + 1), {}),
            "PositionalEncoding": (nn.PositionalEncoding(16, 0.5), (x,), {}),
        }


@pytest.mark.parametrize("case", own_cases())
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval without gradients"])
def test_ours_is_ours(case, training, monkeypatch):
    """With a backend asked for by name no torch operation computes, forward or backward."""
    monkeypatch.setattr("pyflash.ops.core.registry.Op.paranoid", False)  # its checks are torch operations
    module, args, kwargs = own_cases()[case]
    module.train(training)
    args = [a.clone().requires_grad_() for a in args]
    if args[0].shape == args[-1].shape and case == "MultiheadAttention":
        args = [args[0]] * 3

    def call():
        found = module(*args, **kwargs)
        if training:
            found = [out for out in (found if isinstance(found, tuple) else (found,)) if out is not None]
            torch.autograd.backward(found, [torch.ones_like(out) for out in found])

    with use("cpu"), torch.set_grad_enabled(training):
        call()  # whatever is set up once
        seen = operations(call)
    identities = {"dropout", "feature_dropout", "feature_alpha_dropout"}  # in evaluation
    allowed = ALLOWED if training else ALLOWED | identities
    assert seen <= allowed, f"torch computed: {sorted(seen - allowed)}"


def own_functions():
    """Forward and, where there is one, backward of the attention functions that no module is made of alone."""
    q, k, v, packed = (torch.randn(shape, requires_grad=True) for shape in [(1, 2, 6, 8)] * 3 + [(9, 2, 8)])
    bias = torch.randn(6, 6, requires_grad=True)
    table, angles, words = torch.randn(5, 8, requires_grad=True), torch.randn(6, 4), torch.tensor([[1, 2], [1, 4]])
    offsets, lengths = torch.tensor([0, 4, 9], dtype=torch.int32), torch.tensor([4], dtype=torch.int32)
    options = {"dropout_p": 0.1, "is_causal": True}

    def both(out, *others):
        outputs = (out, *others)
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    return {
        "attention": lambda: both(*PF.attention(q, k, v, bias, return_lse=True, softcap=2.0, **options)),
        "embedding": lambda: both(PF.embedding(words, table, 2)),
        "embedding_bag": lambda: both(PF.embedding_bag(words, table, per_sample_weights=q[0, 0, :2, :2], mode="sum")),
        "rotary_embedding": lambda: both(*PF.rotary_embedding(q, k, angles, angles)),
        "attention_weights": lambda: both(PF.attention_weights(q, k, bias, **options)),
        "attention_varlen": lambda: both(
            *PF.attention_varlen(packed, packed, packed, offsets, offsets, 5, 5, return_lse=True, **options)
        ),
        "attention_decode": lambda: PF.attention_decode(q.detach(), k.detach(), v.detach(), lengths, return_lse=True),
    }


@pytest.mark.parametrize("name", own_functions())
def test_functions_are_ours(name, monkeypatch):
    monkeypatch.setattr("pyflash.ops.core.registry.Op.paranoid", False)
    call = own_functions()[name]
    with use("cpu"):
        call()
        seen = operations(call)
    assert seen <= ALLOWED, f"torch computed: {sorted(seen - ALLOWED)}"
    with use("torch"):
        assert operations(call) - ALLOWED, "the profiler does not see torch"


def test_the_profiler_sees_torch():
    assert not set(FORBIDDEN) & ALLOWED
    module, args, kwargs = own_cases()["TransformerEncoderLayer"]
    with use("torch"):
        seen = operations(lambda: module(*args, **kwargs))
    assert {"linear", "softmax", "relu"} & seen or {"addmm", "layer_norm", "relu"} <= seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("module", [nn.Linear(4, 4, bias=False), nn.LayerNorm(4)], ids=["Linear", "LayerNorm"])
def test_a_result_is_no_view(module, backend):
    """Of three dimensions, computed as a matrix: an in-place operation on a view drops the hooks of its gradient."""
    with use(backend):
        assert not module(torch.randn(2, 3, 4))._is_view()
