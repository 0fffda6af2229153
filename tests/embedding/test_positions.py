"""Rotary embeddings against their formula in torch's operations, ALiBi's slopes against the paper's."""

import pytest
import torch
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash.functional as PF
from pyflash.ops.embedding.positions import _op

BACKENDS = backend_params("cpu", "triton")

CASES = [  # batch, heads of q and k, length, head_dim, r, layout, batched tables, why it is here
    ((1,), (1, 1), 1, 2, 2, "contiguous", False, "smallest"),
    ((2,), (4, 2), 5, 64, 64, "projection", False, "views of projections, fewer heads for keys"),
    ((2,), (3, 1), 5, 40, 20, "contiguous", True, "part of a head, odd vectors, a table for each sample"),
    ((2,), (2, 2), 7, 24, 6, "packed", False, "slices of one projection"),
    ((2, 3), (2, 2), 3, 12, 12, "contiguous", True, "two leading dimensions"),
    ((), (2, 2), 4, 10, 10, "contiguous", False, "no leading dimension"),
    ((2,), (1, 2), 3, 16, 16, "transposed", False, "elements of a head not adjacent: a copy"),
    ((1,), (40, 2), 33, 64, 32, "projection", False, "several threads' parts"),
    ((2,), (2, 1), 0, 8, 8, "contiguous", False, "no positions"),
]


def laid_out(batch, heads, length, dim, layout, dtype):
    if layout == "projection":
        return torch.randn(*batch, length, heads * dim, dtype=dtype).unflatten(-1, (heads, dim)).transpose(-2, -3)
    if layout == "packed":
        return torch.randn(*batch, length, heads, 3 * dim, dtype=dtype).transpose(-2, -3)[..., dim : 2 * dim]
    if layout == "transposed":
        return torch.randn(*batch, heads, dim, length, dtype=dtype).mT
    return torch.randn(*batch, heads, length, dim, dtype=dtype)


def make(case, dtype, table_dtype=torch.float32):
    batch, heads, length, dim, r, layout, is_batched, _why = case
    q, k = (laid_out(batch, h, length, dim, layout, dtype) for h in heads)
    samples = (torch.Size(batch).numel(),) if is_batched else ()
    angles = torch.rand(*samples, length, r // 2, dtype=torch.float64) * 6
    return q, k, angles.cos().to(table_dtype), angles.sin().to(table_dtype)


def formula(q, k, cos, sin, *, interleaved=False):
    """Hugging Face's, in the wider of the types; GPT-J's for neighbours."""

    def turned(x):
        half = cos.shape[-1]
        c, s = (t.to(torch.promote_types(t.dtype, x.dtype)) for t in (cos, sin))
        if c.dim() == 3:
            c, s = (t.reshape(*x.shape[:-3], 1, *t.shape[-2:]) for t in (c, s))
        r = x[..., : 2 * half]
        if interleaved:
            across = torch.stack((-r[..., 1::2], r[..., ::2]), -1).flatten(-2)
            c, s = c.repeat_interleave(2, -1), s.repeat_interleave(2, -1)
        else:
            across = torch.cat((-r[..., half:], r[..., :half]), -1)
            c, s = torch.cat((c, c), -1), torch.cat((s, s), -1)
        return torch.cat(((r * c + across * s).to(x.dtype), x[..., 2 * half :]), -1)

    return turned(q), turned(k)


@pytest.mark.parametrize("backend", [*BACKENDS, "torch"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for number, case in enumerate(CASES):
        options = {"interleaved": bool(number % 2) ^ (dtype in (torch.float32, torch.float16))}
        inputs = make(case, dtype, torch.float64 if dtype == torch.float64 else torch.float32)
        tables = [t.detach() for t in inputs[2:]]
        douts = torch.randn(inputs[0].shape, dtype=dtype), torch.randn(inputs[1].shape, dtype=dtype)

        def theirs(q, k, tables=tables, options=options):
            return formula(q, k, *tables, **options)

        def ours(q, k, tables=tables, options=options):
            return PF.rotary_embedding(q, k, *tables, **options)

        truth = run(theirs, inputs[:2], douts, torch.float64)
        found = run(ours, inputs[:2], douts, backend=backend)
        assert_error_within(found, run(theirs, inputs[:2], douts), truth, *douts, *truth)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_tables_of_both_halves(backend, interleaved):
    q, k, cos, sin = make(CASES[1], torch.float32)
    with use(backend):
        expected = PF.rotary_embedding(q, k, cos, sin, interleaved=interleaved)
        both = [torch.cat((t, t), -1) for t in (cos, sin)]
        for tables in (both, [both[0].bfloat16().float(), both[1]], [both[0], both[1].clone().mT.contiguous().mT]):
            found = PF.rotary_embedding(q, k, *tables, interleaved=interleaved)
            if tables[0] is both[0]:
                assert all(map(torch.equal, found, expected))
    assert [t.stride() for t in expected] == [q.stride(), k.stride()]


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_rotation_turns_back(backend):
    x, _, cos, sin = make(CASES[2], torch.float64, torch.float64)
    for interleaved in (False, True):
        y = _op(_op(x, cos, sin, interleaved, False, backend), cos, sin, interleaved, True, backend)
        torch.testing.assert_close(y, x)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_of_gradients(backend, interleaved):
    """In the tables as well."""
    is_fast = backend == "triton"  # in the interpreter a call takes milliseconds
    q, k, cos, sin = make(((2,), (2, 1), 2, 6, 4, "contiguous", False, ""), torch.float64, torch.float64)
    leaves = [t.requires_grad_() for t in (q, k, cos, sin)]

    def function(q, k, cos, sin):
        return PF.rotary_embedding(q, k, cos, sin, interleaved=interleaved)

    with use(backend):
        assert torch.autograd.gradcheck(function, leaves, fast_mode=is_fast)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=is_fast)
        fixed = cos.detach(), sin.detach()
        assert torch.autograd.gradgradcheck(lambda q, k: function(q, k, *fixed), leaves[:2], fast_mode=is_fast)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_stay_in_their_pair(backend):
    q, k, cos, sin = make(CASES[1], torch.float32)
    q[0, 1, 2, 3], q[1, 0, 0, 40] = float("nan"), float("inf")
    with use(backend):
        y = PF.rotary_embedding(q, k, cos, sin)[0]
    assert not y.isfinite()[0, 1, 2, [3, 35]].any() and not y.isfinite()[1, 0, 0, [8, 40]].any()
    assert y.isfinite().sum() == y.numel() - 4


WRONG = [  # shapes of q, k, cos, sin
    ((4, 8), (1, 4, 8), (4, 4), (4, 4), "q has shape"),
    ((1, 4, 8), (4, 8), (4, 4), (4, 4), "k has shape"),
    ((1, 4, 8), (1, 4, 8), (4, 4), (4, 3), "expected both"),
    ((1, 4, 8), (1, 4, 8), (4,), (4,), "expected both"),
    ((1, 4, 8), (1, 4, 8), (5, 4), (5, 4), "slice the tables"),
    ((1, 4, 8), (1, 3, 8), (4, 4), (4, 4), "slice the tables"),
    ((2, 1, 4, 8), (2, 1, 4, 8), (3, 4, 4), (3, 4, 4), "slice the tables"),
    ((1, 4, 8), (1, 4, 8), (4, 9), (4, 9), "9 wide"),
    ((1, 4, 8), (1, 4, 8), (4, 5), (4, 5), "5 wide"),
]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("case", WRONG, ids=lambda case: case[-1])
def test_shapes_that_do_not_fit(backend, case):
    *shapes, message = case
    with use(backend), pytest.raises(ValueError, match=message):
        PF.rotary_embedding(*(torch.ones(shape) for shape in shapes))


def test_wrong_devices_and_kinds():
    q, k, cos, sin = make(CASES[0], torch.float32)
    with use("cpu"):
        with pytest.raises(RuntimeError, match="cos on meta"):
            PF.rotary_embedding(q, k, cos.to("meta"), sin)
        with pytest.raises(TypeError, match="sin is a float"):
            PF.rotary_embedding(q, k, cos, 0.0)
        with pytest.raises(TypeError, match=r"q is torch\.int64"):
            PF.rotary_embedding(q.long(), k, cos, sin)
        with pytest.raises(TypeError):
            PF.rotary_embedding(q, k, cos, sin, True)


def test_compile_export_and_transforms():
    q, k, cos, sin = make(CASES[1], torch.float32)

    class Module(torch.nn.Module):
        def forward(self, q, k, cos, sin):
            return PF.rotary_embedding(q, k, cos, sin)

    expected = formula(q, k, cos, sin)
    with use("cpu"):
        leaf = q.clone().requires_grad_()
        found = torch.compile(Module(), fullgraph=True, backend="aot_eager")(leaf, k, cos, sin)
        torch.testing.assert_close(found, expected)
        (dq,) = torch.autograd.grad(found[0], leaf, q)
        torch.testing.assert_close(dq, formula(q, k, cos, -sin)[0])
        program = torch.export.export(Module(), (q, k, cos, sin))
        assert any("pyflash.rotary" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(q, k, cos, sin), expected)
        batched = torch.func.vmap(lambda q, k: PF.rotary_embedding(q, k, cos, sin))(q, k)
        torch.testing.assert_close(batched, expected)


def test_alibi_slopes():
    """The paper's: 1/2, 1/4, ... 1/256 for 8 heads; others are in between."""
    assert PF.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert PF.alibi_slopes(1).tolist() == [2.0**-8]
    torch.testing.assert_close(PF.alibi_slopes(16)[::2], 2.0 ** -(torch.arange(8) + 0.5))
    twelve = PF.alibi_slopes(12)
    assert twelve.dtype == torch.float32 and torch.equal(
        twelve, torch.cat((PF.alibi_slopes(8), PF.alibi_slopes(16)[:8:2]))
    )
    for wrong, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="num_heads"):
            PF.alibi_slopes(wrong)
