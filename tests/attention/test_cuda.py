"""Attention in CUDA C++ (csrc/cuda/attention), in the types it serves: the case tables of the other backends, and what is its
own. On the host, in three orders of its threads, where there is no GPU."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_error_within, backend_params, on_its_device, run, use

import pyflash.functional as PF
from pyflash.cli.explain import explain
from pyflash.ops.core import backends
from pyflash.ops.core.dtypes import HALVES
from pyflash.ops.core.philox import attention_keep
from tests.attention import test_decode, test_dense, test_far_masks, test_varlen
from tests.attention.attention_helpers import compare, make_mask, tensors

CUDA = backend_params("cuda")
SEED = torch.tensor([-(2**62) + 12345])
DENSE = [
    *test_dense.CASES,
    (1, 1, 1, 130, 130, 64, 64, "bhld", "two tiles of rows, of which the second has two"),
    (1, 2, 1, 70, 100, 128, 128, "blhd", "widest plain tile of two rows a lane"),
    (1, 1, 1, 70, 70, 192, 128, "bhld", "192 and 128, padded to 256"),
    (2, 2, 2, 17, 64, 40, 72, "bhld", "pieces of 16 bytes that fill no tile"),
]


@pytest.mark.parametrize("case", DENSE, ids=lambda c: c[-1])
@pytest.mark.parametrize("backend", CUDA)
def test_matches_float64(backend, case):
    for dtype, is_causal in zip(HALVES, (False, True)):
        qkv, dout = tensors(case, dtype)
        compare(backend, qkv, dout, dtype=dtype, is_causal=is_causal, enable_gqa=case[1] != case[2])


@pytest.mark.parametrize(
    "kind", ["bool_full", "bool_rows", "bool_padding", "float_full", "float_rows", "float_padding"]
)
@pytest.mark.parametrize("backend", CUDA)
def test_masks(backend, kind):
    for case, dtype in zip((test_dense.CASES[1], test_dense.CASES[3], test_dense.CASES[5]), (*HALVES, HALVES[0])):
        batch, heads, kv_heads, rows, keys = case[:5]
        qkv, dout = tensors(case, dtype)
        mask = make_mask(kind, batch, heads, rows, keys)
        if mask.is_floating_point():
            mask = mask.to(dtype)
        compare(backend, qkv, dout, mask, dtype=dtype, enable_gqa=heads != kv_heads)


@pytest.mark.parametrize("shape", [(2, 3, 70, 35), (1, 3, 70, 35), (2, 1, 70, 35), (70, 35), (2, 1, 1, 35), (2, 3, 70, 1),
                                   (1, 1, 1, 1), (35,), (70, 1), (3, 1, 35)], ids=str)  # fmt: skip
@pytest.mark.parametrize("backend", CUDA[-1:])
def test_gradient_of_every_broadcast_mask(backend, shape):
    qkv, dout = tensors((2, 3, 3, 70, 35, 8, 8, "bhld", ""), torch.bfloat16)
    compare(backend, qkv, dout, torch.randn(shape).bfloat16(), dtype=torch.bfloat16)


@pytest.mark.parametrize("backend", CUDA[-1:])
def test_float32_masks_and_their_gradients(backend):
    """Beside half types; with softcap, a window and dropout, which the gradient of a mask has its own share of."""
    (q, k, v), dout = tensors((1, 2, 1, 40, 70, 72, 80, "bhld", ""), torch.float16)
    options = {
        "softcap": 3.0,
        "window_size": (30, 20),
        "dropout_p": 0.2,
        "seed": on_its_device(SEED),
        "enable_gqa": True,
    }

    def call(q, k, v, mask):
        return PF.attention(q, k, v, mask, **options)

    for shape in ((40, 70), (1, 2, 1, 70), (40, 1)):
        mask = torch.randn(shape)

        def results(dtype, backend, mask=mask):
            leaves = [t.detach().to(dtype).requires_grad_() for t in (q, k, v)]
            leaves.append(mask.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_())
            with use(backend):
                out = call(*leaves)
            *gradients, of_mask = torch.autograd.grad(out, leaves, dout.to(dtype))
            return out.detach(), *gradients, of_mask.to(dtype)  # no better than out, which it is made of

        assert_error_within(
            results(torch.float16, backend), results(torch.float16, "torch"), results(torch.float64, "torch"), dout,
            floor_ulp=8,
        )  # fmt: skip


@pytest.mark.parametrize("name", test_dense.EXTENDED)
@pytest.mark.parametrize("backend", CUDA)
def test_extended(backend, name):
    """Against the reference in torch operations, with gradients through out and lse."""
    options = on_its_device({"seed": SEED, "return_lse": True, "enable_gqa": True, **test_dense.EXTENDED[name]})
    for (rows, keys, heads, kv_heads), dtype in zip(
        ((40, 70, 3, 3), (140, 150, 3, 1), (7, 200, 3, 1)), (*HALVES, HALVES[0])
    ):
        (q, k, v), dout = tensors((1, heads, kv_heads, rows, keys, 20, 24, "bhld", ""), dtype)

        def call(q, k, v):
            return PF.attention(q, k, v, **options)

        lse = run(call, (q, k, v), backend="torch")[1]
        douts = (dout, torch.where(lse == -torch.inf, 0.0, torch.randn(lse.shape)))
        truth = run(call, (q, k, v), douts, torch.float64, "torch")
        assert_error_within(
            run(call, (q, k, v), douts, None, backend), run(call, (q, k, v), douts, None, "torch"), truth, dout, floor_ulp=8
        )  # fmt: skip


@pytest.mark.parametrize("value", test_far_masks.FAR)
@pytest.mark.parametrize("backend", CUDA[-1:])
def test_rows_whose_mask_is_far_from_zero(backend, value):
    """lse has a low part there."""
    (q, k, v), mask = test_far_masks.far_inputs(9, 100, value, torch.bfloat16)
    douts = torch.randn(1, 2, 9, 12).bfloat16(), torch.randn(1, 2, 9)

    def attend(q, k, v):
        bias = mask.double() if q.dtype == torch.float64 else mask
        return PF.attention(q, k, v, bias, return_lse=True, enable_gqa=True, scale=0.25)

    truth = run(attend, (q, k, v), douts, torch.float64, "torch")
    ours, theirs = (run(attend, (q, k, v), douts, torch.bfloat16, of) for of in (backend, "torch"))
    assert_error_within(ours, theirs, truth, douts[0], floor_ulp=8)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend", CUDA)
def test_dropout_keeps_the_same_weights_everywhere(backend, dtype):
    """v is the identity: out is the matrix of weights. In the backward: dv of a dout of ones is their sums."""
    seed = on_its_device(torch.tensor([987654321987654321]))
    q, k = torch.randn(2, 3, 50, 8).to(dtype), torch.randn(2, 3, 150, 8).to(dtype)
    v = torch.eye(150, dtype=dtype).expand(2, 3, 150, 150)
    keep = attention_keep(seed, 2, 3, 50, 150, 0.4)
    with use(backend):
        v = v.detach().requires_grad_()
        w = PF.attention(q, k, v, dropout_p=0.4, seed=seed)
        row = torch.zeros_like(w)
        row[:, :, 37] = 1  # dv[j] is the weight of key j in this row
        dv = torch.autograd.grad(w, v, row)[0]
        assert (PF.attention(q, k, v, dropout_p=1.0) == 0).all()
    assert torch.equal(w != 0, keep)
    assert torch.equal(dv[..., 0] != 0, keep[:, :, 37])


@pytest.mark.parametrize("backend", CUDA[-1:])
def test_masked_rows_are_zero(backend):
    (q, k, v), dout = tensors((1, 2, 2, 20, 30, 16, 16, "bhld", ""), torch.bfloat16)
    mask = torch.rand(20, 30) > 0.5
    mask[3] = False
    for m in (mask, torch.where(mask, 0.0, -torch.inf)):
        with use(backend):
            inputs = [t.clone().requires_grad_() for t in (q, k, v)]
            out, lse = PF.attention(*inputs, m, return_lse=True)
            dq, dk, dv = torch.autograd.grad((out, lse), inputs, (dout, torch.ones_like(lse)))
        assert (out[:, :, 3] == 0).all() and (lse[:, :, 3] == -torch.inf).all() and (dq[:, :, 3] == 0).all()
        assert all(t.isfinite().all() for t in (out, dq, dk, dv)) and lse[:, :, 4].isfinite().all()


@pytest.mark.parametrize("backend", CUDA[:1])
def test_gradients_whose_strides_are_zero(backend):
    """out.sum() expands one element to the gradient of out."""
    (q, k, v), _ = tensors((1, 2, 2, 20, 30, 16, 16, "bhld", ""), torch.bfloat16)
    found = []
    for of in (backend, "torch"):
        inputs = [t.clone().requires_grad_() for t in (q, k, v)]
        with use(of):
            found.append(torch.autograd.grad(PF.attention(*inputs).sum(), inputs))
    torch.testing.assert_close(*found, atol=0.02, rtol=0.02)


# ---- packed sequences and caches ------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", test_varlen.CASES, ids=lambda c: c[-1])
@pytest.mark.parametrize("backend", CUDA)
def test_each_sequence_alone(backend, case):
    test_varlen.compare(backend, case, torch.bfloat16)


@pytest.mark.parametrize("backend", CUDA[:1])
def test_float16_sequences(backend):
    test_varlen.compare(backend, test_varlen.CASES[1], torch.float16)


@pytest.mark.parametrize("backend", CUDA[:1])
def test_offsets_that_lead_outside_are_clamped(backend):
    """On a GPU nobody reads them before the kernels do; there they must not read or write elsewhere."""
    from pyflash.ops.attention import _cuda

    q = torch.randn(9, 2, 8, dtype=torch.bfloat16)
    cu = torch.tensor([-5, 4, 4, 40], dtype=torch.int32)
    out, lse = torch.empty(9, 2, 8, dtype=q.dtype), torch.empty(2, 9)
    with use(backend):
        _cuda.attention_varlen_fwd(q, q, q, cu, cu.long(), None, None, 40, 40, 0.0, 0.3, 0.0, -1, -1, False, out, lse)
    last = q[4:].float().transpose(0, 1)[None]
    wanted = F.scaled_dot_product_attention(last, last, last, scale=0.3)[0].transpose(0, 1)
    torch.testing.assert_close(out[4:].float(), wanted, atol=0.02, rtol=0.02)
    assert out.isfinite().all() and lse.isfinite().all()


@pytest.mark.parametrize("case", test_decode.CASES, ids=lambda c: c[-1])
@pytest.mark.parametrize("backend", CUDA)
def test_each_cache_alone(backend, case):
    for dtype in HALVES:
        test_decode.compare(backend, case, dtype)


@pytest.mark.parametrize("block_size", [1, 16, 50])
@pytest.mark.parametrize("case", test_decode.CASES, ids=lambda c: c[-1])
@pytest.mark.parametrize("backend", CUDA)
def test_pools_of_blocks(backend, case, block_size):
    test_decode.compare(backend, case, HALVES[0], block_size, torch.int64 if block_size == 16 else torch.int32)


@pytest.mark.parametrize("backend", CUDA[-1:])
def test_a_pool_of_several_parts(backend):
    case = ((1100, 300, 0), 1100, 4, 2, 1, 64, 64, "dense", {"window_size": (700, -1)}, "")
    for block_size in (64, 129):
        test_decode.compare(backend, case, torch.bfloat16, block_size)


@pytest.mark.parametrize("backend", CUDA[:1])
def test_blocks_outside_of_the_pool_stay_inside(backend):
    """As on a GPU, where nobody reads the table before the kernel does."""
    from pyflash.ops.attention import _cuda

    q, pool = torch.randn(3, 2, 1, 8).bfloat16(), torch.randn(4, 2, 5, 8).bfloat16()
    table = torch.tensor([[-9, 1], [2**31 - 1, 4], [0, 3]], dtype=torch.int32)
    lengths = torch.tensor([10, 10, 99], dtype=torch.int32)
    with use(backend):
        for num_blocks in (4, 0):
            out, lse = torch.full_like(q, torch.nan), torch.full((3, 2, 1), torch.nan, device=q.device)
            scalars = 0.3, 0.0, -1, 0
            _cuda.attention_decode(q, pool[:num_blocks], pool[:num_blocks], lengths, table, None, *scalars, out, lse)
            if num_blocks:
                inside = table.clamp(0, 3)
                wanted = PF.attention_decode(q, pool, pool, lengths.clamp(max=10), block_table=inside, scale=0.3)
                torch.testing.assert_close(out, wanted)
            else:
                assert not out.any() and lse.eq(-torch.inf).all()


@pytest.mark.parametrize("backend", CUDA[-1:])
def test_caches_of_several_parts(backend):
    for case in (
        ((1100, 300, 0), 1100, 4, 2, 1, 64, 64, "dense", {}, ""),
        ((900,), 1500, 2, 1, 3, 72, 200, "dense", {"window_size": (500, -1), "softcap": 4.0}, ""),
        ((600,), 600, 20, 1, 4, 16, 16, "blhd", {}, "more rows than a tile"),
    ):
        test_decode.compare(backend, case, torch.bfloat16)


# ---- what is refused ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", CUDA[:1])
def test_what_it_does_not_serve_is_refused(backend):
    q = torch.randn(1, 2, 4, 8)
    for x, words in (
        (q, "cuda does not serve float32"),
        (q.double(), "cuda does not serve float64"),
        (torch.randn(1, 2, 4, 257).half(), "head_dim is 257; kernels for GPUs support up to 256"),
    ):
        with use(backend), pytest.raises(NotImplementedError, match=words):
            PF.attention(x, x, x)
    with use(backend), pytest.raises(NotImplementedError, match="cuda has no attention_weights kernel"):
        PF.attention_weights(q.half(), q.half())


@pytest.mark.skipif(not backends.CUDA_ON_HOST or bool(backends.MISSING["cuda"]), reason="on the host")
def test_explain_says_which_types():
    cells = explain("cpu")["operations"]
    for name in ("attention", "attention_varlen", "attention_decode"):
        assert cells[name]["cuda"]["served"] == ["bfloat16", "float16"], name
    assert not cells["attention_weights"]["cuda"]["served"]
