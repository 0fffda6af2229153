"""The Triton attention launchers in the interpreter, against the formula in float64: dense, packed, split over keys, and
the weights alone.

Error is at most twice that of the same formula in the case's own dtype, plus a few ulp. Outputs arrive full of NaN with
guards behind them.
"""

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import SOFTMAX_ULP, assert_error_within

from pyflash.ops.core import backends
from pyflash.ops.core.registry import GUARD, GUARD_VALUE, poisoned, span_of

if backends.MISSING["triton"]:
    pytest.skip(backends.MISSING["triton"], allow_module_level=True)

from pyflash.kernels import tuning
from pyflash.kernels.attention import decode as attention_decode
from pyflash.kernels.attention import dense as attention
from pyflash.kernels.attention import weights as attention_weights

pytestmark = [pytest.mark.triton, pytest.mark.on_device]
SEED = -987654321987  # both halves of the key, and a sign


@dataclass
class Case:
    why: str
    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    L: int = 37
    S: int = 35
    E: int = 16
    Ev: int = 16
    layout: str = "contiguous"
    mask: str = ""  # bool, float, holes (float with -inf)
    mask_shape: tuple = (1, 1, 1, 1)
    slopes: tuple = ()
    dropout_p: float = 0.0
    scale: float = 0.25
    softcap: float = 0.0
    left: int = -1
    right: int = -1
    diagonal: int = 0
    dlse: bool = False
    dtype: torch.dtype = torch.float32


CASES = [
    Case("smallest", heads=1, L=1, S=1, E=1, Ev=1),
    Case(
        "tails everywhere, grouped heads, gradient of lse", batch=2, heads=4, kv_heads=2, S=53, E=20, Ev=33, dlse=True
    ),
    Case("causal", L=70, S=70, right=0),
    Case("causal to the bottom right", heads=1, L=40, S=70, E=8, right=0, diagonal=30),
    Case("causal with rows that see nothing", heads=1, L=70, S=40, E=8, right=0, diagonal=-30, dlse=True),
    Case("window behind", heads=2, kv_heads=2, L=90, S=90, left=20, right=0),
    Case("window on both sides, moved", L=90, S=90, left=5, right=40, diagonal=3),
    Case("left bound only", heads=1, L=90, S=90, left=7),
    Case("one key a row, some rows none", heads=1, L=40, S=90, left=0, right=0, diagonal=60, dlse=True),
    Case("window beyond the keys", heads=1, left=3, right=3, diagonal=100),
    Case("window before the keys", heads=1, left=3, right=3, diagonal=-100),
    Case("window wider than 32 bits", heads=1, L=5, S=5, left=2**40, right=2**40),
    Case("bool mask", batch=2, kv_heads=2, L=17, mask="bool", mask_shape=(2, 2, 17, 35)),
    Case("key padding", batch=2, kv_heads=2, L=17, mask="bool", mask_shape=(2, 1, 1, 35)),
    *(
        Case(f"bias {shape}", batch=2, mask="float", mask_shape=shape, dlse=sum(shape) % 2 == 1)
        for shape in [(1, 1, 1, 1), (1, 1, 1, 35), (1, 1, 37, 1), (1, 2, 37, 35), (2, 1, 1, 35), (2, 2, 37, 35)]
    ),
    Case("bias with -inf, whole rows of it, and causal", batch=2, mask="holes", mask_shape=(2, 1, 37, 35), right=0),
    Case("ALiBi by head", slopes=(2,), right=0),
    Case("ALiBi by batch and head, moved", batch=2, slopes=(2, 2), diagonal=3),
    Case("softcap", softcap=2.0, scale=1.0),
    Case(
        "everything",
        softcap=5.0,
        mask="float",
        mask_shape=(1, 2, 37, 35),
        slopes=(2,),
        left=9,
        dropout_p=0.3,
        dlse=True,
    ),
    Case("dropout, causal, two batches", batch=2, dropout_p=0.3, right=0),
    Case("dropout threshold beyond 31 bits", heads=1, L=7, dropout_p=0.7),
    Case("everything dropped", heads=1, L=7, dropout_p=1.0),
    Case("negative scale", heads=1, scale=-0.5),
    Case("scale 0", heads=1, scale=0.0, right=0),
    Case("no rows", heads=1, L=0),
    Case("no keys", heads=1, S=0),
    Case("no batch", batch=0, heads=1),
    Case("no heads", heads=0, kv_heads=0),
    Case(
        "no query heads a key head, a gradient for the mask",
        heads=0,
        kv_heads=2,
        mask="float",
        mask_shape=(1, 1, 37, 35),
    ),
    # scaled as in models: p is off by the rounding of its score, and scores of 14 round 14 times as much as those of 1
    Case("widest heads, padded values", heads=1, L=33, S=20, E=256, Ev=200, scale=1 / 16),
    Case("narrow values", heads=1, L=33, S=20, E=96, Ev=3),
    *(
        Case(f"{layout} layout", kv_heads=2, E=20, Ev=20, right=0, layout=layout)
        for layout in ("batch_first", "transposed", "every_second", "expanded")
    ),
    Case("few rows over many keys: split", batch=2, kv_heads=1, L=3, S=200),
    Case("split, causal, ALiBi, softcap", L=3, S=200, right=0, left=150, diagonal=197, slopes=(2,), softcap=3.0),
    *(
        Case(f"{dtype}, dropout {p}", S=53, E=20, Ev=24, dtype=dtype, right=0, dropout_p=p)
        for dtype, p in [(torch.bfloat16, 0.0), (torch.bfloat16, 0.3), (torch.float16, 0.3)]
    ),
    Case("bfloat16 bias", mask="float", mask_shape=(1, 2, 37, 35), dtype=torch.bfloat16),
]

# half_relative: a key too many or too few in hundreds is not seen otherwise.
LIMITS = {"floor_ulp": 4.0 + SOFTMAX_ULP, "half_relative": 1e-2}

# Loops of many tiles in half types, which are what a GPU pipelines: above, most loops run once there. The interpreter
# runs a few of them that are cheap.
ON_A_GPU_ONLY = pytest.mark.skipif(backends.INTERPRETING, reason="minutes in the interpreter: on a GPU only")
LONG = [
    Case("cheap, causal", heads=1, L=40, S=300, right=0, diagonal=260, dtype=torch.bfloat16),
    Case("cheap, bias", heads=1, L=33, S=300, mask="float", mask_shape=(1, 1, 33, 300), dtype=torch.float16),
    *(
        pytest.param(Case(f"{why}, {dtype}", dtype=dtype, scale=options["E"] ** -0.5, **options), marks=ON_A_GPU_ONLY)
        for dtype in (torch.bfloat16, torch.float16)
        for why, options in {
            "dense": dict(L=300, S=1100, E=64, Ev=64, dlse=True),
            "dense, wide": dict(L=520, S=610, E=128, Ev=128),
            "dense, whole tiles": dict(L=512, S=1024, E=64, Ev=64),
            "padded width": dict(L=300, S=400, E=96, Ev=80, right=0),
            "widest": dict(L=300, S=330, E=256, Ev=256, right=0),
            "causal": dict(L=1100, S=1100, E=64, Ev=64, right=0),
            "causal, wide": dict(L=600, S=600, E=128, Ev=128, right=0),
            "causal, grouped heads": dict(batch=2, heads=8, kv_heads=2, L=515, S=515, E=64, Ev=64, right=0),
            "window": dict(L=1000, S=1000, E=64, Ev=64, left=200, right=0),
            "window on both sides, moved": dict(L=400, S=900, E=128, Ev=64, left=150, right=70, diagonal=300),
            "bias": dict(L=515, S=1030, E=64, Ev=64, mask="float", mask_shape=(1, 2, 515, 1030)),
            "bias by key, causal": dict(batch=2, L=600, S=600, E=128, Ev=128, mask="float", mask_shape=(2, 1, 1, 600), right=0),
            "bias with -inf": dict(L=400, S=512, E=64, Ev=64, mask="holes", mask_shape=(1, 1, 400, 512)),
            "bool mask": dict(L=520, S=777, E=64, Ev=64, mask="bool", mask_shape=(1, 2, 520, 777)),
            "dropout": dict(L=400, S=700, E=64, Ev=64, dropout_p=0.3),
            "dropout, causal, wide": dict(L=520, S=520, E=128, Ev=128, dropout_p=0.1, right=0),
            "softcap, ALiBi, causal": dict(L=515, S=515, E=64, Ev=64, softcap=5.0, slopes=(2,), right=0),
            "split over keys": dict(L=2, S=1100, E=128, Ev=128),
        }.items()
    ),
]  # fmt: skip


def of(case):
    """The Case of a pytest parameter."""
    return case if isinstance(case, Case) else case.values[0]


def philox(counter, key):
    """Philox4x32-10 on int64 tensors: four words for each counter."""
    c = [word.clone() for word in counter]
    for _ in range(10):
        low, high = 0xD2511F53 * c[0], [x * 0xCD9E8D57 for x in (c[2] >> 16, c[2] & 0xFFFF)]
        first = (c[0] >> 16) * 0xD2511F53 + ((c[0] & 0xFFFF) * 0xD2511F53 >> 16)
        second = high[0] + (high[1] >> 16)  # 64-bit products by halves, signed integers being one bit short
        c = [
            (second >> 16) ^ c[1] ^ key[0],
            (c[2] * 0xCD9E8D57) & 0xFFFFFFFF,
            (first >> 16) ^ c[3] ^ key[1],
            low & 0xFFFFFFFF,
        ]
        key = (key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF
    return c


def keep_mask(batch, heads, L, S, p):
    """What dropout keeps: counter (j // 4, i, b * heads + h, 0), word j % 4."""
    head, row, quad = torch.meshgrid(
        torch.arange(batch * heads), torch.arange(L), torch.arange((S + 3) // 4), indexing="ij"
    )
    words = philox((quad, row, head, torch.zeros_like(quad)), (SEED & 0xFFFFFFFF, SEED >> 32 & 0xFFFFFFFF))
    words = torch.stack(words, -1).reshape(batch, heads, L, -1)[..., :S]
    return words >= int(p * 2**32)


def formula(q, k, v, mask, slopes, keep, case, diagonal=None):
    """out and lse, in the type of q."""
    p, lse = weights_formula(q, k, mask, slopes, keep, case, diagonal)
    return p @ v.repeat_interleave(q.shape[1] // max(k.shape[1], 1), 1), lse


def weights_formula(q, k, mask, slopes, keep, case, diagonal=None):
    diagonal = case.diagonal if diagonal is None else diagonal
    k = k.repeat_interleave(q.shape[1] // max(k.shape[1], 1), 1)
    scores = case.scale * (q @ k.transpose(-1, -2))
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    i, j = torch.arange(q.shape[2])[:, None] + diagonal, torch.arange(k.shape[2])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if slopes is not None:
        scores = scores - slopes.to(q.dtype).expand(q.shape[:2])[..., None, None] * (i - j).abs()
    visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if case.left >= 0:
        visible &= j >= i - case.left
    if case.right >= 0:
        visible &= j <= i + case.right
    scores = scores.masked_fill(~visible, -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    scores = scores.masked_fill(empty, 0.0)
    p = ~empty * torch.softmax(scores, -1)
    wide = scores.double() if q.dtype == torch.float64 else scores.float()
    lse = torch.logsumexp(wide, -1) if k.shape[2] else wide.sum(-1)
    if keep is not None:
        p = torch.where(keep, p / (1 - case.dropout_p), 0.0) if case.dropout_p < 1 else 0 * p
    return p, lse.masked_fill(empty[..., 0], -math.inf)


def tensor(case, *shape):
    if case.layout == "batch_first":
        x = torch.randn(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)
    elif case.layout == "transposed":
        x = torch.randn(shape[0], shape[1], shape[3], shape[2]).transpose(2, 3)
    elif case.layout == "every_second":
        x = torch.randn(*shape[:3], 2 * shape[3])[..., ::2]
    elif case.layout == "expanded":
        x = torch.randn(1, 1, *shape[2:]).expand(shape)
    else:
        x = torch.randn(shape)
    return x.to(case.dtype)


def masks(case):
    """The mask as a kernel takes it, and the floating-point one it was expanded from."""
    bias = mask = None
    if case.mask == "bool":
        mask = torch.rand(case.mask_shape) > 0.4
    elif case.mask:
        bias = torch.randn(case.mask_shape)
        if case.mask == "holes":
            bias = torch.where(torch.rand(case.mask_shape) > 0.4, bias, -math.inf)
            bias[:, :, 5] = -math.inf
        mask = bias = bias.to(case.dtype)
    return None if mask is None else mask.expand(case.batch, case.heads, case.L, case.S), bias


def lse_like(mask, *shape):
    """lse; with a floating mask a pair, the second what the rounding of the first left out."""
    return torch.empty(2, *shape) if mask is not None and mask.is_floating_point() else torch.empty(shape)


def fill(launcher, args, *outputs):
    """The outputs of launcher(*args, *outputs): NaN before, their guards untouched after."""
    outputs = [poisoned(output) for output in outputs]
    torch.use_deterministic_algorithms(True, warn_only=True)  # what the launcher allocates is NaN before, as well
    try:
        launcher(*args, *outputs)
    finally:
        torch.use_deterministic_algorithms(False)
    for output in outputs:
        guard = output.as_strided((GUARD,), (1,), output.storage_offset() + span_of(output))
        assert (guard == GUARD_VALUE).all()
    return outputs


def gradients(function, inputs, douts):
    """Outputs and gradients of function(*inputs), autograd's."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    total = sum((o * d.to(o.dtype)).sum() for o, d in zip(outputs, douts) if d is not None)
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    return *(o.detach() for o in outputs), *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads))


@pytest.mark.parametrize("case", [*CASES, *LONG], ids=lambda c: c.why)
def test_dense(case):
    q = tensor(case, case.batch, case.heads, case.L, case.E)
    k = tensor(case, case.batch, case.kv_heads, case.S, case.E)
    v = tensor(case, case.batch, case.kv_heads, case.S, case.Ev)
    dout = tensor(case, case.batch, case.heads, case.L, case.Ev)
    dlse = torch.randn(case.batch, case.heads, case.L) if case.dlse else None
    scores = case.batch, case.heads, case.L, case.S
    mask, bias = masks(case)
    slopes = torch.rand(case.slopes) if case.slopes else None
    seed, keep = torch.tensor([SEED]), None
    if case.dropout_p:
        keep = keep_mask(*scores, case.dropout_p)

    options = mask, slopes, seed, case.dropout_p, case.scale, case.softcap, case.left, case.right, case.diagonal
    out, lse = fill(attention.attention_fwd, (q, k, v, *options), torch.empty_like(dout), lse_like(mask, *scores[:3]))
    grads = fill(
        attention.attention_bwd,
        (dout, dlse, q, k, v, out, lse, *options, bias is not None),
        *(x.new_empty(x.shape) for x in (q, k, v)),
        torch.empty(0) if bias is None else torch.empty_like(bias),
    )
    ours = out, lse if bias is None else lse[0], *(grads if bias is not None else grads[:3])

    def function(q, k, v, *bias):
        out, lse = formula(q, k, v, bias[0].expand(scores) if bias else mask, slopes, keep, case)
        # the gradient of lse = -inf is nobody's
        return out, lse, lse.masked_fill(lse == -math.inf, 0.0)

    inputs = [q, k, v] if bias is None else [q, k, v, bias]
    douts = dout, None, dlse
    theirs = gradients(function, inputs, douts)
    truth = gradients(function, [x.double() for x in inputs], douts)
    theirs, truth = ((*results[:2], *results[3:]) for results in (theirs, truth))  # without the second lse
    assert_error_within(ours[:5], theirs[:5], truth[:5], q, k, v, dout, **LIMITS)
    if bias is not None:  # sums of cancelling terms round like the square root of their number
        summed = (scores[0] * scores[1] * scores[2] * scores[3] / bias.numel()) ** 0.5
        assert_error_within(ours[5:], theirs[5:], truth[5:], dout * summed, floor_ulp=LIMITS["floor_ulp"])


@pytest.mark.parametrize("case", [case for case in [*CASES, *LONG] if not of(case).slopes], ids=lambda c: c.why)
def test_weights(case):
    """The matrix itself, every element of it, and its backward; the gradient of its lse is not asked for."""
    q = tensor(case, case.batch, case.heads, case.L, case.E)
    k = tensor(case, case.batch, case.kv_heads, case.S, case.E)
    scores = case.batch, case.heads, case.L, case.S
    dweights = tensor(case, *scores)
    mask, bias = masks(case)
    keep = keep_mask(*scores, case.dropout_p) if case.dropout_p else None
    scalars = case.dropout_p, case.scale, case.softcap, case.left, case.right, case.diagonal
    options = mask, torch.tensor([SEED]), *scalars
    outputs = q.new_empty(scores), lse_like(mask, *scores[:3])
    weights, lse = fill(attention_weights.attention_weights_fwd, (q, k, *options), *outputs)
    grads = fill(
        attention_weights.attention_weights_bwd,
        (dweights, q, k, weights, lse, *options, bias is not None),
        *(x.new_empty(x.shape) for x in (q, k)),
        torch.empty(0) if bias is None else torch.empty_like(bias),
    )
    ours = weights, lse if bias is None else lse[0], *(grads if bias is not None else grads[:2])

    def function(q, k, *bias):
        return weights_formula(q, k, bias[0].expand(scores) if bias else mask, None, keep, case)

    inputs = [q, k] if bias is None else [q, k, bias]
    theirs = gradients(function, inputs, (dweights, None))
    truth = gradients(function, [x.double() for x in inputs], (dweights, None))
    assert_error_within(ours[:4], theirs[:4], truth[:4], q, k, dweights, **LIMITS)
    if bias is not None:
        summed = (math.prod(scores) / bias.numel()) ** 0.5
        assert_error_within(ours[4:], theirs[4:], truth[4:], dweights * summed, floor_ulp=LIMITS["floor_ulp"])


def test_a_weight_that_is_not_a_number():
    """A row with NaN is NaN in every column, as its softmax is: also where a causal row sees nothing, and dropped ones."""
    q, k = torch.randn(1, 1, 70, 16), torch.randn(1, 1, 70, 16)
    q[0, 0, 3, 1], q[0, 0, 40, 2] = math.nan, math.inf
    weights, lse = fill(
        attention_weights.attention_weights_fwd,
        (q, k, None, torch.tensor([SEED]), 0.3, 0.25, 0.0, -1, 0, 0),
        *(torch.empty(1, 1, 70, 70), torch.empty(1, 1, 70)),
    )
    rows = torch.tensor([3, 40])
    assert weights[0, 0, rows].isnan().all() and lse[0, 0, rows].isnan().all()
    assert weights.isnan().sum() == 2 * 70


@pytest.mark.parametrize("bottom_right", [False, True])
@pytest.mark.parametrize(
    "lengths_q, lengths_k, size, left, dtype",
    [
        ([5, 0, 40, 33], [7, 20, 0, 50], 16, 9, torch.float32),
        pytest.param([300, 0, 40, 515], [600, 20, 0, 515], 64, 200, torch.bfloat16, marks=ON_A_GPU_ONLY),
        pytest.param([300, 0, 40, 515], [600, 20, 0, 515], 128, -1, torch.float16, marks=ON_A_GPU_ONLY),
    ],
)
def test_packed_sequences(lengths_q, lengths_k, size, left, dtype, bottom_right):
    """An empty sequence, one without keys, tokens of no sequence, and offsets past the end."""
    case = Case("", left=left, right=0, scale=size**-0.5)
    cu_q, cu_k = (torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (lengths_q, lengths_k))
    q, dout = (torch.randn(sum(lengths_q) + 3, 4, n).to(dtype) for n in (size, 24))
    k, v = (torch.randn(sum(lengths_k), 2, n).to(dtype) for n in (size, 24))
    dlse = torch.randn(4, len(q))
    past = cu_k.clone()
    past[-1] += 1000  # clamped to the tokens there are
    longest = max(lengths_q), max(lengths_k)
    options = None, torch.tensor([0]), *longest, 0.0, case.scale, 0.0, case.left, case.right, bottom_right
    out, lse = fill(
        attention.attention_varlen_fwd, (q, k, v, cu_q, past, *options), torch.empty_like(dout), torch.empty(4, len(q))
    )
    grads = fill(
        attention.attention_varlen_bwd,
        (dout, dlse, q, k, v, out, lse, cu_q, past, *options),
        *(torch.empty_like(x) for x in (q, k, v)),
    )

    def function(q, k, v):
        out = torch.zeros(dout.shape, dtype=q.dtype)
        lse = torch.full(dlse.shape, -math.inf, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
        for i, (length_q, length_k) in enumerate(zip(lengths_q, lengths_k)):
            rows, keys = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
            heads = [x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys])]
            one = formula(*heads, None, None, None, case, length_k - length_q if bottom_right else 0)
            out[rows], lse[:, rows] = one[0][0].transpose(0, 1), one[1][0]
        return out, lse, lse.masked_fill(lse == -math.inf, 0.0)

    theirs = gradients(function, [q, k, v], (dout, None, dlse))
    truth = gradients(function, [x.double() for x in (q, k, v)], (dout, None, dlse))
    results = (out, lse, *grads), (*theirs[:2], *theirs[3:]), (*truth[:2], *truth[3:])
    assert_error_within(*results, q, dout, **LIMITS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "few, max_len, options",
    [
        (1, 200, {}),
        (3, 150, dict(left=30, E=20, Ev=24)),
        (5, 90, dict(softcap=3.0, slopes=(4,), heads=4)),
        (2, 40, dict(right=-1)),
        (2, 0, {}),
        pytest.param(1, 1100, dict(E=128, Ev=128, heads=8), marks=ON_A_GPU_ONLY),  # splits, each of several tiles
        pytest.param(4, 2500, dict(E=64, Ev=64, left=900), marks=ON_A_GPU_ONLY),
    ],
)
def test_decode(few, max_len, options, dtype):
    case = Case("", **{"right": 0, "heads": 4, "kv_heads": 2, **options}, dtype=dtype)
    q = tensor(case, 3, case.heads, few, case.E)
    case.layout = "batch_first"
    k, v = tensor(case, 3, 2, max_len, case.E), tensor(case, 3, 2, max_len, case.Ev)
    slopes = torch.rand(case.slopes) if case.slopes else None
    cache_seqlens = torch.tensor([max_len + 7, max_len // 3, 0], dtype=torch.int32)  # the first is clamped
    out, lse = fill(
        attention_decode.attention_decode,
        (q, k, v, cache_seqlens, None, slopes, case.scale, case.softcap, case.left, case.right),
        q.new_empty(3, case.heads, few, case.Ev),
        torch.empty(3, case.heads, few),
    )
    for b, length in enumerate([max_len, max_len // 3, 0]):
        results = [
            formula(
                *(x[b : b + 1].to(t) for x in (q, k[:, :, :length], v[:, :, :length])),
                None,
                slopes,
                None,
                case,
                length - few,
            )
            for t in (dtype, torch.float64)
        ]
        assert_error_within((out[b : b + 1], lse[b : b + 1]), *results, q, v, **LIMITS)


@pytest.mark.parametrize("place", ["query", "key"])
@pytest.mark.parametrize("of_caches", [False, True])
def test_few_queries_that_are_not_numbers(of_caches, place):
    """NaN in a query, or in one key of one part, is NaN in what depends on it, and nowhere else."""
    q, k, v = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 200, 8), torch.randn(2, 2, 200, 8)
    if place == "query":
        q[1, 0, 1, 3] = math.nan
    else:
        k[1, 0, 150, 3] = math.nan
    outputs = torch.empty(2, 2, 3, 8), torch.empty(2, 2, 3)
    if of_caches:
        cache_seqlens = torch.tensor([200, 200], dtype=torch.int32)
        launcher, args = attention_decode.attention_decode, (q, k, v, cache_seqlens, None, None, 0.25, 0.0, -1, -1)
    else:
        launcher, args = attention.attention_fwd, (q, k, v, None, None, None, 0.0, 0.25, 0.0, -1, -1, 0)
        assert tuning.attention_splits_keys("interpreter", q.shape, k.shape)
    out, lse = fill(launcher, args, *outputs)
    expected = torch.zeros(2, 2, 3, dtype=torch.bool)
    expected[1, 0, 1 if place == "query" else slice(None)] = True
    assert torch.equal(lse.isnan(), expected)
    assert torch.equal(out.isnan(), expected[..., None].expand_as(out))


def test_the_split_cases_are_split():
    for case in CASES:
        shapes = (case.batch, case.heads, case.L, case.E), (case.batch, case.kv_heads, case.S, case.E)
        assert tuning.attention_splits_keys("interpreter", *shapes) == ("split" in case.why)


def test_no_load_is_made_in_front_of_a_loop_that_does_not_run():
    """The first loads of a pipelined loop lie in front of it and must keep its condition: read behind the end of a tensor
    where no tile was, an illegal access if that is the end of mapped memory. Seen in machine code only."""
    code = """
import re, tempfile
from benchmarks import aot
from triton import knobs

def unguarded(kernel, arch, log):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        code = aot._output(knobs.nvidia.nvdisasm.path, "-c", file.name)
    copies = re.findall(r"(@!?U?P\\d+ )?\\s*LDGSTS([^;]*);", code)
    assert copies
    return [copy for guard, copy in copies if not guard and not re.search(r", !?U?P\\d+\\s*$", copy)]

aot._measure = unguarded
found = aot.compile_case("sm90/attention_weights/bfloat16/64")["attention_weights_bwd_dk"]
assert not found, found
"""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
