"""Fused attention against torch's own function in float64, on every backend."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_error_within, backend_params, run, use

import pyflash.functional as PF
from tests.attention.attention_helpers import CPU, HALVES, compare, make_mask, plain, tensors

CASES = [  # B, H, Hkv, L, S, E, Ev, layout, why it is here
    (1, 1, 1, 1, 1, 1, 1, "bhld", "smallest"),
    (2, 3, 3, 37, 53, 17, 17, "bhld", "odd everything"),
    (1, 2, 2, 70, 150, 64, 64, "blhd", "two key blocks; heads inside rows, as nn.MultiheadAttention has them"),
    (2, 4, 2, 33, 40, 32, 32, "bhld", "two query heads a key head"),
    (1, 6, 1, 3, 130, 16, 16, "blhd", "one key head, few rows: heads share a block"),
    (1, 2, 2, 130, 20, 65, 3, "bhld", "more queries than keys; E != Ev, neither a multiple of a vector"),
    (1, 1, 1, 40, 300, 80, 96, "bhld", "three key blocks, one head"),
    (1, 2, 2, 20, 30, 63, 200, "last_strided", "columns not adjacent"),
    (2, 2, 2, 20, 30, 24, 40, "expanded", "K and V of stride 0 over the batch"),
    (1, 1, 1, 9, 35, 128, 256, "bhld", "longest chains: 128 and 256"),
    (1, 1, 1, 9, 35, 256, 128, "holes", "rows with holes between them"),
    (0, 2, 2, 5, 6, 8, 8, "bhld", "no batch"),
    (1, 2, 2, 0, 6, 8, 8, "bhld", "no queries"),
    (1, 2, 2, 5, 0, 8, 8, "bhld", "no keys"),
    (2, 0, 0, 5, 6, 8, 8, "bhld", "no heads"),
    (2, 0, 0, 40, 6, 8, 8, "bhld", "no heads, more rows than a block"),
    (2, 0, 2, 5, 6, 8, 8, "bhld", "no query heads a key head: key gradients are zero"),
    (1, 4, 2, 3, 40, 16, 16, "bhld", "six rows a key head: more than a block of double in the smallest vectors"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[-1])
@pytest.mark.parametrize("backend", CPU)
def test_matches_float64(backend, case):
    qkv, dout = tensors(case)
    gqa = case[1] != case[2]
    for is_causal in (False, True):
        compare(backend, qkv, dout, is_causal=is_causal, enable_gqa=gqa)


@pytest.mark.parametrize(
    "kind", ["bool_full", "bool_rows", "bool_padding", "float_full", "float_rows", "float_padding"]
)
@pytest.mark.parametrize("backend", CPU)
def test_masks(backend, kind):
    for case in (CASES[1], CASES[3], CASES[4], CASES[6]):
        batch, heads, kv_heads, rows, keys = case[:5]
        qkv, dout = tensors(case)
        compare(backend, qkv, dout, make_mask(kind, batch, heads, rows, keys), enable_gqa=heads != kv_heads)


@pytest.mark.parametrize("empty", ["L", "S", "E", "Ev", "heads", "batch"])
def test_empty_dimensions_below_several_of_batch(empty):
    sizes = {"batch": 3, "heads": 2, "L": 5, "S": 6, "E": 8, "Ev": 4, empty: 0}
    batch, heads, rows, keys, dim, dim_v = sizes.values()
    q, k, v = (torch.randn(2, batch, heads, *s) for s in ((rows, dim), (keys, dim), (keys, dim_v)))
    for mask in (None, torch.rand(batch, 1, rows, keys) > 0.5):
        compare("cpu", (q, k, v), torch.randn(2, batch, heads, rows, dim_v), mask)
    slopes = torch.rand(2, batch, heads)
    with use("cpu"):
        assert PF.attention(q, k, v, alibi_slopes=slopes).shape == (2, batch, heads, rows, dim_v)
        assert PF.attention_weights(q, k).shape == (2, batch, heads, rows, keys)


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("backend", CPU)
def test_dtypes(backend, dtype):
    # bfloat16 has products of its own: every shape and layout
    for case in CASES if dtype == torch.bfloat16 else (CASES[1], CASES[3], CASES[-1], CASES[5], CASES[7]):
        (q, k, v), dout = tensors(case, dtype)
        for is_causal in (False, True):
            compare(backend, (q, k, v), dout, dtype=dtype, is_causal=is_causal, enable_gqa=case[1] != case[2])
    for case in (CASES[1], CASES[7]):
        (q, k, v), dout = tensors(case, dtype)
        compare(backend, (q, k, v), dout, torch.randn(case[3], case[4], dtype=dtype), dtype=dtype)


@pytest.mark.parametrize("backend", CPU)
def test_odd_bfloat16(backend):
    """Pairs that do not come out even: columns, keys, rows an odd number of elements apart, windows from an odd key."""
    for rows, keys, dim, dim_v in ((33, 65, 7, 5), (70, 129, 33, 31), (9, 1, 1, 1), (300, 511, 18, 40)):
        (q, k, v), dout = tensors((1, 2, 2, rows, keys, dim, dim_v, "holes", ""), torch.bfloat16)
        mask = torch.rand(rows, keys) > 0.3
        mask[:, 0] = True
        for m in (None, mask, torch.randn(rows, keys, dtype=torch.bfloat16)):
            compare(backend, (q, k, v), dout, m, dtype=torch.bfloat16)
        for options in ({"window_size": (5, 3)}, {"dropout_p": 0.3}, {"softcap": 2.0}):
            options = {"seed": torch.tensor([5]), "return_lse": True, **options}

            def call(q, k, v, options=options):
                return PF.attention(q, k, v, **options)

            lse = run(call, (q, k, v), backend="torch")[1]
            douts = (dout, torch.where(lse == -torch.inf, 0.0, torch.randn(lse.shape)))
            truth = run(call, (q, k, v), douts, torch.float64, "torch")
            assert_error_within(
                run(call, (q, k, v), douts, None, backend), run(call, (q, k, v), douts, None, "torch"), truth, dout,
                floor_ulp=8,
            )  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend", [*CPU, *backend_params("cuda")[:1]])
def test_half_nan_and_infinity(backend, dtype):
    q, k, v = (torch.randn(1, 1, 40, 8, dtype=dtype) for _ in range(3))
    for place, value in (("q", math.nan), ("k", -math.nan), ("v", math.nan), ("v", math.inf)):
        changed = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
        changed[place][0, 0, 5, 2] = value
        with use(backend):
            out = PF.scaled_dot_product_attention(changed["q"], changed["k"], changed["v"])
        expected = F.scaled_dot_product_attention(
            changed["q"], changed["k"], changed["v"], torch.zeros(40, 40, dtype=dtype)
        )
        assert torch.equal(out.isnan(), expected.isnan()) and torch.equal(out.isinf(), expected.isinf())


@pytest.mark.parametrize("shape", [(2, 3, 20, 35), (1, 3, 20, 35), (2, 1, 20, 35), (20, 35), (2, 1, 1, 35), (2, 3, 20, 1),
                                   (1, 1, 1, 1), (35,), (20, 1), (3, 1, 35)])  # fmt: skip
def test_bias_gradient_of_every_broadcast(shape):
    qkv, dout = tensors((2, 3, 3, 20, 35, 8, 8, "bhld", ""))
    compare("cpu", qkv, dout, torch.randn(shape))


@pytest.mark.parametrize("backend", CPU)
def test_masked_rows_are_zero(backend):
    (q, k, v), dout = tensors((1, 2, 2, 20, 30, 16, 16, "bhld", ""))
    mask = torch.rand(20, 30) > 0.5
    mask[3] = False
    for m in (mask, torch.where(mask, 0.0, -torch.inf)):
        with use(backend):
            inputs = [t.clone().requires_grad_() for t in (q, k, v)]
            out, lse = PF.attention(*inputs, m, return_lse=True)
            dq, dk, dv = torch.autograd.grad((out, lse), inputs, (dout, torch.ones_like(lse)))
        assert (out[:, :, 3] == 0).all() and (lse[:, :, 3] == -torch.inf).all() and (dq[:, :, 3] == 0).all()
        assert all(t.isfinite().all() for t in (out, dq, dk, dv)) and lse[:, :, 4].isfinite().all()


EXTENDED = {
    "lse": {},
    "window": {"window_size": (5, 3)},
    "left window, causal": {"window_size": (20, -1), "is_causal": True},
    "causal from the end": {"is_causal": True, "causal_align": "bottom_right"},
    "window from the end": {"window_size": (0, 0), "causal_align": "bottom_right"},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.1, 0.02])},
    "softcap": {"softcap": 2.0},
    "dropout": {"dropout_p": 0.3},
    "everything": {"dropout_p": 0.2, "softcap": 5.0, "alibi_slopes": torch.tensor([[0.5, 0.1, 0.02]]),
                   "window_size": (9, 40), "scale": -0.3},
}  # fmt: skip


@pytest.mark.parametrize("name", EXTENDED)
@pytest.mark.parametrize("backend", CPU)
def test_extended(backend, name):
    """Against the reference in torch operations, with gradients through out and lse."""
    options = {"seed": torch.tensor([-(2**62) + 12345]), "return_lse": True, **EXTENDED[name]}
    for rows, keys, heads, kv_heads in ((40, 70, 3, 3), (150, 140, 3, 1), (7, 200, 3, 1)):
        (q, k, v), dout = tensors((1, heads, kv_heads, rows, keys, 20, 24, "bhld", ""))

        def call(q, k, v, options=options):
            return PF.attention(q, k, v, enable_gqa=True, **options)

        lse = run(call, (q, k, v), backend="torch")[1]
        # a row without a key has lse -inf: its gradient is nobody's
        douts = (dout, torch.where(lse == -torch.inf, 0.0, torch.randn(lse.shape)))
        truth = run(call, (q, k, v), douts, torch.float64, "torch")
        assert_error_within(
            run(call, (q, k, v), douts, None, backend), run(call, (q, k, v), douts, None, "torch"), truth, dout, floor_ulp=8
        )  # fmt: skip


@pytest.mark.parametrize("backend", backend_params("triton"))
def test_triton_serves_the_same_operator(backend):
    """The kernels have tests of their own; this is the seam."""
    for case in (CASES[1], CASES[3]):
        qkv, dout = tensors(case)
        compare(backend, qkv, dout, torch.randn(case[3], case[4]), enable_gqa=case[1] != case[2])


def test_mask_together_with_causal_means_both():
    (q, k, v), _ = tensors((1, 2, 2, 20, 20, 8, 8, "bhld", ""))
    mask = torch.rand(20, 20) > 0.3
    expected = F.scaled_dot_product_attention(q, k, v, mask & torch.ones(20, 20, dtype=torch.bool).tril())
    for backend in ("cpu", "torch"):
        with use(backend):
            torch.testing.assert_close(PF.scaled_dot_product_attention(q, k, v, mask, is_causal=True), expected)


SHAPES = [  # q, k, v, enable_gqa
    ((4, 8), (5, 8), (5, 3), False),
    ((3, 4, 8), (3, 5, 8), (3, 5, 8), False),
    ((3, 4, 8), (5, 8), (5, 8), False),
    ((2, 3, 4, 8), (1, 3, 5, 8), (2, 1, 5, 8), False),
    ((1, 4, 4, 8), (1, 1, 5, 8), (2, 1, 5, 8), False),
    ((2, 2, 3, 4, 8), (2, 1, 3, 5, 8), (5, 8), False),
    ((4, 4, 8), (2, 5, 8), (2, 5, 8), True),
    ((2, 2, 4, 4, 8), (2, 2, 2, 5, 8), (2, 2, 2, 5, 8), True),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_leading_dimensions(shapes):
    *shapes, gqa = shapes
    inputs = [torch.randn(shape) for shape in shapes]
    theirs, ours, _ = plain(enable_gqa=gqa)
    dout = torch.randn(theirs(*inputs).shape)
    truth = run(theirs, inputs, dout, torch.float64)
    assert_error_within(run(ours, inputs, dout, backend="cpu"), run(theirs, inputs, dout), truth, dout)


def test_masks_of_five_dimensions():
    inputs = [torch.randn(2, 3, 2, 4, 8) for _ in range(3)]
    for shape in ((2, 1, 1, 4, 4), (3, 1, 4, 4), (4, 4), (1, 1, 2, 1, 4)):
        theirs, ours, extra = plain(torch.randn(shape))
        dout = torch.randn(2, 3, 2, 4, 8)
        truth = run(theirs, [*inputs, *extra], dout, torch.float64)
        assert_error_within(
            run(ours, [*inputs, *extra], dout, backend="cpu"), run(theirs, [*inputs, *extra], dout), truth, dout
        )
