"""What the tests of dense attention share: tensors, masks, and the comparison with torch in float64."""

import torch
import torch.nn.functional as F
from helpers import assert_error_within, backend_params, run

import pyflash.functional as PF

HALVES = (torch.bfloat16, torch.float16)
CPU = backend_params("cpu")


def make(batch, heads, rows, dim, layout, dtype=torch.float32):
    if layout == "blhd":
        return torch.randn(batch, rows, heads, dim, dtype=dtype).transpose(1, 2)
    if layout == "last_strided":
        return torch.randn(batch, heads, dim, rows, dtype=dtype).mT
    if layout == "expanded":
        return torch.randn(1, heads, rows, dim, dtype=dtype).expand(batch, -1, -1, -1)
    if layout == "holes":
        return torch.randn(batch, heads, rows, dim + 3, dtype=dtype)[..., :dim]
    return torch.randn(batch, heads, rows, dim, dtype=dtype)


def tensors(case, dtype=torch.float32):
    batch, heads, kv_heads, rows, keys, dim, dim_v, layout, _ = case
    q = make(batch, heads, rows, dim, layout if layout != "expanded" else "bhld", dtype)
    k, v = make(batch, kv_heads, keys, dim, layout, dtype), make(batch, kv_heads, keys, dim_v, layout, dtype)
    return (q, k, v), torch.randn(batch, heads, rows, dim_v, dtype=dtype)


def make_mask(kind, batch, heads, rows, keys):
    if kind == "none":
        return None
    shape = {"full": (batch, heads, rows, keys), "rows": (rows, keys), "padding": (batch, 1, 1, keys)}[
        kind.split("_")[1]
    ]
    if kind.startswith("float"):
        return torch.randn(shape)
    mask = torch.rand(shape) > 0.4
    return mask if kind.endswith("padding") else mask.mT.contiguous().mT  # columns not adjacent


def plain(mask=None, **options):
    """torch's and our function with these options, of q, k, v and, when it is floating, the mask."""

    def make_call(function):
        if mask is not None and mask.is_floating_point():
            return lambda q, k, v, m: function(q, k, v, m, **options)
        return lambda q, k, v: function(q, k, v, mask, **options)

    inputs = [mask] if mask is not None and mask.is_floating_point() else []
    return make_call(F.scaled_dot_product_attention), make_call(PF.scaled_dot_product_attention), inputs


def compare(backend, qkv, dout, mask=None, dtype=torch.float32, scales=(), **options):
    theirs, ours, extra = plain(mask, **options)
    inputs = [*qkv, *extra]
    truth = run(theirs, inputs, dout, torch.float64)
    assert_error_within(
        run(ours, inputs, dout, dtype, backend), run(theirs, inputs, dout, dtype), truth, dout, *scales, floor_ulp=8
    )
