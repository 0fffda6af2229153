"""The matrix of attention weights: `attention_weights` on every backend against float64 torch."""

import math

import pytest
import torch
from helpers import assert_error_within, backend_params, run, use

import pyflash.functional as PF
from tests.attention.attention_helpers import HALVES, make, make_mask

WEIGHTS = [  # B, H, Hkv, L, S, E, layout of k, options, why it is here
    (2, 3, 3, 37, 53, 20, "bhld", {}, "odd everything"),
    (2, 4, 2, 5, 140, 20, "bhld", {"dropout_p": 0.3}, "two query heads a key head, several key blocks, dropout"),
    (1, 2, 2, 70, 40, 17, "last_strided", {"is_causal": True}, "causal, more rows than keys, columns not adjacent"),
    (1, 4, 1, 20, 90, 16, "holes", {"is_causal": True, "dropout_p": 0.3}, "causal, keys nobody sees, rows with holes"),
    (2, 2, 2, 9, 35, 33, "expanded", {"scale": -0.5}, "negative scale, K of stride 0 over the batch"),
    (1, 1, 1, 1, 1, 1, "bhld", {}, "smallest"),
    (1, 2, 2, 6, 7, 8, "blhd", {"dropout_p": 1.0}, "everything dropped"),
    (0, 2, 2, 5, 6, 8, "bhld", {}, "no batch"),
    (1, 2, 2, 0, 6, 8, "bhld", {}, "no queries"),
    (1, 2, 1, 5, 0, 8, "bhld", {}, "no keys"),
    (2, 0, 2, 5, 6, 8, "bhld", {}, "no heads"),
]
WEIGHTS_MASKS = ["none", "bool_full", "bool_rows", "bool_padding", "float_full", "float_rows", "float_padding"]


@pytest.mark.parametrize("kind", WEIGHTS_MASKS)
@pytest.mark.parametrize("case", WEIGHTS, ids=lambda c: c[-1])
@pytest.mark.parametrize("backend", backend_params("cpu", "triton"))
def test_weights(backend, case, kind):
    """Against the reference, and against `attention`, which multiplies v with them."""
    batch, heads, kv_heads, rows, keys, dim, layout, options, _ = case
    q, k = make(batch, heads, rows, dim, "blhd"), make(batch, kv_heads, keys, dim, layout)
    mask = make_mask(kind, batch, heads, rows, keys)
    options = {"seed": torch.tensor([5]), "enable_gqa": True, **options}

    def call(q, k, *mask_):
        return PF.attention_weights(q, k, *(mask_ or (mask,)), **options)

    inputs = [q, k, mask] if kind.startswith("float") else [q, k]
    dout = torch.randn(batch, heads, rows, keys)
    truth = run(call, inputs, dout, torch.float64, "torch")
    ours = run(call, inputs, dout, None, backend)
    assert_error_within(ours, run(call, inputs, dout, None, "torch"), truth, dout, floor_ulp=8)
    v = torch.eye(keys).expand(batch, kv_heads, keys, keys)
    with use(backend):
        out = PF.attention(q, k, v, mask, **options)
    torch.testing.assert_close(out, ours[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", backend_params("cpu", "triton"))
def test_weights_of_masked_rows_are_zero(backend):
    q, k, dout = make(1, 2, 20, 16, "bhld"), make(1, 2, 30, 16, "bhld"), torch.randn(1, 2, 20, 30)
    mask = torch.rand(20, 30) > 0.5
    mask[3] = False
    for m in (mask, torch.where(mask, 0.0, -torch.inf)):
        weights, dq, dk = run(lambda q, k, m=m: PF.attention_weights(q, k, m), (q, k), dout, None, backend)
        assert (weights[:, :, 3] == 0).all() and (dq[:, :, 3] == 0).all()
        assert (weights[:, :, ~mask] == 0).all() and all(t.isfinite().all() for t in (weights, dq, dk))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend", backend_params("cpu", "triton"))
def test_weights_in_half_types(backend, dtype):
    """One element of the gradient is a sum of products of half numbers: those may round on their way, as in torch."""
    q, k = (make(1, 2, rows, 20, "bhld", dtype) for rows in (33, 65))
    mask, dout = torch.randn(33, 65, dtype=dtype), torch.randn(1, 2, 33, 65, dtype=dtype)

    def plain_weights(q, k, mask):
        return torch.softmax(q @ k.mT / math.sqrt(20) + mask, -1)

    truth = run(plain_weights, (q, k, mask), dout, torch.float64)
    ours = run(PF.attention_weights, (q, k, mask), dout, None, backend)
    assert_error_within(ours, run(plain_weights, (q, k, mask), dout), truth, dout, floor_ulp=8)


@pytest.mark.parametrize("backend", backend_params("triton"))
def test_weights_that_triton_refuses(backend):
    wide, double = torch.randn(1, 1, 2, 257), torch.randn(1, 1, 2, 8).double()  # where the kernels run
    with use(backend), pytest.raises(NotImplementedError, match="head_dim is 257; kernels for GPUs support up to 256"):
        PF.attention_weights(wide, wide)
    with use(backend), pytest.raises(NotImplementedError, match="triton does not serve float64"):
        PF.attention_weights(double, double)


def test_weights_second_derivatives_and_causal():
    q, k = (torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    with use("cpu"):
        assert torch.autograd.gradcheck(lambda *a: PF.attention_weights(*a, is_causal=True), (q, k, mask))
        assert torch.autograd.gradgradcheck(lambda *a: PF.attention_weights(*a, is_causal=True), (q, k, mask))
