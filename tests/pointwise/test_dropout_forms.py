"""Dropout of channels and alpha dropout: torch's values and rules, a mask from Philox that is that of the channel's number."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, use

import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.pointwise.dropout import _op as dropout
from pyflash.ops.pointwise.dropout_forms import _DropoutForm, _op

BACKENDS = backend_params("cpu", "triton")
SEED = 0x123456789ABCDEF

CASES = [  # shape, layout, why it is here
    ((1, 1, 1), "contiguous", "smallest"),
    ((3, 67), "contiguous", "no spatial dimension"),
    ((2, 5, 37), "contiguous", "odd rows: tail of a vector"),
    ((2, 70, 3), "channels_last", "channels next to each other, more of them than a block has words"),
    ((2, 3, 4, 5), "contiguous", "images"),
    ((2, 33, 4, 5), "channels_last", "images, channels last"),
    ((2, 3, 2, 3, 5), "channels_last", "volumes, channels last"),
    ((4, 100, 1, 1), "contiguous", "one element a channel"),
]
FORMS = {  # name -> a shape that it takes, the dimensions of a channel in front
    "dropout1d": (8, 40, 11),
    "dropout2d": (8, 40, 3, 5),
    "dropout3d": (8, 40, 2, 3, 2),
    "alpha_dropout": (40, 70),
    "feature_alpha_dropout": (8, 40, 3, 5),
}


def make(shape, layout="contiguous", dtype=torch.float32):
    x = torch.randn(shape, dtype=dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else x


def seed():
    return torch.tensor([SEED])


def call(name, x, p, inplace=False):
    return getattr(PF, name)(x, p, True, inplace)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_the_reference(backend, dtype):
    name = backend.partition(":")[0]
    for shape, layout, _why in CASES:
        for form in ((False, True, False), (True, True, True), (True, False, True), (True, True, False)):
            for p in (0.3, 1.0):
                x = make(shape, layout, dtype)
                wide = torch.empty_like(x, dtype=torch.float64).copy_(x)
                with use(backend):
                    y = _op(x, seed().to(x.device), p, *form, name)
                theirs, truth = _op.reference(x, seed(), p, *form), _op.reference(wide, seed(), p, *form)
                assert y.stride() == x.stride()
                assert_error_within((y,), theirs, truth)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_channels_word_is_that_of_its_number(backend):
    name = backend.partition(":")[0]
    ones, word = torch.ones(5, 30), seed()
    with use(backend):
        of_elements = dropout(ones, word, 0.5, name)
    for layout in ("contiguous", "channels_last"):
        x = torch.ones_like(make((5, 30, 4, 3), layout))
        with use(backend):
            y = _op(x, word, 0.5, False, True, False, name)
            assert torch.equal(y, of_elements[:, :, None, None].expand_as(y))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FORMS)
def test_the_values_are_torchs(backend, name):
    """Of ones: two values, what is kept and what is dropped; NaN and signs of zero where torch has them."""
    for p in (0.25, 1.0):
        for value in (1.0, -0.0, float("nan"), float("inf")):
            x = torch.full(FORMS[name], value)
            with use(backend):
                ours = call(name, x, p).unique(sorted=True)
            theirs = getattr(F, name)(x, p, True).unique(sorted=True)
            torch.testing.assert_close(ours.isnan().any(), theirs.isnan().any())
            ours, theirs = (t[~t.isnan()].unique() for t in (ours, theirs))
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
            assert torch.equal(ours.signbit(), theirs.signbit())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FORMS)
def test_rate_channels_and_reproducibility(backend, name):
    p, x = 0.3, torch.randn(FORMS[name]) + 5
    with use(backend):
        torch.manual_seed(3)
        first, second = call(name, x, p), call(name, x, p)
        torch.manual_seed(3)
        assert torch.equal(call(name, x, p), first)
    assert not torch.equal(first, second)
    dropped = first < 0.5 if "alpha" in name else first == 0
    if name != "alpha_dropout":
        dropped = dropped.flatten(2)
        assert torch.equal(dropped.all(2), dropped.any(2))
        dropped = dropped.all(2)
    share = dropped.double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / dropped.numel()) ** 0.5


def test_alpha_dropout_keeps_mean_and_variance():
    x = torch.nn.functional.selu(torch.randn(1 << 18))
    with use("cpu"):
        y = PF.alpha_dropout(x, 0.2, True)
    assert abs(y.mean() - x.mean()) < 0.02 and abs(y.var() - x.var()) < 0.05


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("name", FORMS)
def test_forward_and_backward_use_one_mask(backend, name):
    for layout in ("contiguous", "channels_last"):
        x = torch.ones_like(make(FORMS[name], layout)).requires_grad_()
        with use(backend):
            y = call(name, x, 0.3)
        dy = torch.randn(x.shape)
        (dx,) = torch.autograd.grad(y, x, dy)
        kept = y == y.max()
        factor = y.max() - y.min() if "alpha" not in name else ((1.7580993408473766**2 * 0.3 + 1) * 0.7) ** -0.5
        torch.testing.assert_close(dx, torch.where(kept, dy * factor, 0))


def test_gradients_of_gradients():
    x = make((3, 4, 2, 2), "channels_last", torch.float64).requires_grad_()
    for form in ((False, True, False), (True, False, True)):
        function = lambda x, form=form: _DropoutForm.apply(x, seed(), 0.4, *form, "cpu")  # noqa: E731
        assert torch.autograd.gradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(lambda x, function=function: function(x) ** 2, (x,))


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("name", FORMS)
def test_torchs_rules(backend, name):
    function, theirs, x = getattr(PF, name), getattr(F, name), torch.randn(FORMS[name])
    with use(backend):
        assert torch.equal(function(x, training=False), x) and torch.equal(function(x, 0.0, True), x)
        assert function(x[:0], 0.5, True).shape == x[:0].shape
        for p in (-0.1, 1.1):
            with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got"):
                function(x, p, True)
        with pytest.raises(TypeError):
            function(x, "half", True)
        for wrong in ((torch.ones(3), 0.5, True), (torch.arange(6).view(1, 2, 3), 0.5, True)):
            raised = []
            for f in (function, theirs):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        f(*wrong)
                    except Exception as error:
                        raised.append(type(error))
            assert len(raised) != 1 and len(set(raised)) <= 1
        leaf = x.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="leaf"):
            function(leaf, 0.5, True, True)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_ranks(backend):
    """What torch says of unusual numbers of dimensions, and what a channel is there."""

    def said(f, *args):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y = f(*args)
        return y, [str(w.message) for w in caught]

    with use(backend):
        for name, shape, leading in (
            ("dropout2d", (8, 40, 5), 2),
            ("dropout2d", (8, 40), 2),
            ("dropout2d", (4, 40, 2, 3, 2), 2),
            ("dropout3d", (40, 8, 5), 1),
            ("dropout3d", (40, 2, 2, 3), 1),
            ("dropout1d", (40, 9), 1),
        ):
            ours, heard = said(getattr(PF, name), torch.ones(shape))
            theirs, expected = said(getattr(F, name), torch.ones(shape))
            assert heard == expected and ours.shape == theirs.shape
            for y in (ours, theirs):
                dropped = (y == 0).reshape(*shape[:leading], -1)
                assert torch.equal(dropped.all(-1), dropped.any(-1)) and 0 < dropped.sum() < dropped.numel()
        with pytest.raises(RuntimeError, match="Expected 2D or 3D input, but received a 4D input"):
            PF.dropout1d(torch.ones(1, 2, 3, 4))
        with pytest.raises(RuntimeError, match="at least 2 dimensions"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            PF.dropout2d(torch.ones(4))


@pytest.mark.parametrize("name", FORMS)
def test_inplace(name):
    for layout in ("contiguous", "channels_last"):
        x = make(FORMS[name], layout)
        torch.manual_seed(1)
        with use("cpu"):
            expected = call(name, x, 0.5)
            torch.manual_seed(1)
            y = call(name, x, 0.5, inplace=True)
        assert y is x and torch.equal(y, expected)


@pytest.mark.parametrize("name", ["dropout2d", "alpha_dropout"])
def test_compile_and_export(name):
    class Module(torch.nn.Module):
        def forward(self, x):
            return call(name, x, 0.25)

    x = torch.ones(FORMS[name]).requires_grad_()
    with use("cpu"):
        y = torch.compile(Module(), fullgraph=True, backend="aot_eager")(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        program = torch.export.export(Module(), (torch.ones(FORMS[name]),))
        assert any("pyflash.dropout_form" in str(node.target) for node in program.graph.nodes)
        mask = torch.func.grad(lambda x: call(name, x, 0.5).sum())(torch.ones(FORMS[name]))
    assert torch.equal(dx != 0, y == y.max()) and len(program.module()(torch.ones(FORMS[name])).unique()) == 2
    assert len(mask.unique()) == 2


@pytest.mark.parametrize("name", ["Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"])
def test_modules(name):
    ours, theirs = getattr(nn, name)(0.5), getattr(torch.nn, name)(0.5)
    assert repr(ours) == repr(theirs)
    x = torch.ones(FORMS[{"AlphaDropout": "alpha_dropout"}.get(name, "feature_alpha_dropout")])
    x = x.flatten(2) if name == "Dropout1d" else x[..., None] if name == "Dropout3d" else x
    with use("cpu"):
        assert len(ours(x).unique()) == 2
        assert torch.equal(ours.eval()(x), x)
