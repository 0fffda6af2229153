"""The Triton launchers of Linear, LayerNorm and dropout, and the elementary functions, in the interpreter."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_error_within

from pyflash.ops.core import backends

if backends.MISSING["triton"]:
    pytest.skip(backends.MISSING["triton"], allow_module_level=True)

import triton
import triton.language as tl

from pyflash.activations import ACTIVATIONS
from pyflash.kernels import linear, primitives, tuning
from pyflash.kernels.norm import layer_norm
from pyflash.kernels.pointwise import activation, dropout
from pyflash.ops.core.registry import OPS, implementation
from tests.attention.test_triton import SEED, fill, philox

pytestmark = [pytest.mark.triton, pytest.mark.on_device]
ON_A_GPU = pytest.mark.skipif(backends.INTERPRETING, reason="takes minutes in the interpreter")
HALVES_AND_FLOAT32 = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT32, ids=str)
@pytest.mark.parametrize(
    "M, N, K, activation, bias",
    [
        (1, 1, 1, "", True),
        (40, 70, 33, "gelu", True),
        (64, 32, 64, "relu", False),
        (0, 3, 4, "", True),
        (3, 4, 0, "", True),
    ],
)
def test_linear(M, N, K, activation, bias, dtype):
    x, weight = torch.randn(K, M).t().to(dtype), torch.randn(N, K).to(dtype)
    bias = torch.randn(N).to(dtype) if bias else None
    function = ACTIVATIONS[activation].reference if activation else lambda z: z

    def reference(dtype):
        preact = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        return function(preact), preact

    outputs = x.new_empty(M, N), x.new_empty(M, N)
    ours = fill(linear.linear_fwd, (x, weight, bias, activation, 0.0, 0.0, True), *outputs)
    assert_error_within(ours, reference(dtype), reference(torch.float64), x, weight)


@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT32, ids=str)
@pytest.mark.parametrize(
    "M, N, K",
    [
        (70, 300, 330),
        pytest.param(1024, 1100, 1040, marks=ON_A_GPU),
        pytest.param(300, 768, 1100, marks=ON_A_GPU),
        pytest.param(16, 1100, 520, marks=ON_A_GPU),
        pytest.param(1100, 4100, 1001, marks=ON_A_GPU),
    ],
)
def test_products_of_many_iterations(M, N, K, dtype):
    """Forward and both gradients at sizes where the loop of each is iterated and its tail is masked."""
    x, weight, dy = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype), torch.randn(M, N).to(dtype)
    bias = torch.randn(N).to(dtype)
    grads = fill(
        linear.linear_bwd,
        (dy, x, weight, dy, "", 0.0, 0.0, True, True, True),
        x.new_empty(M, K),
        x.new_empty(N, K),
        bias.clone(),
    )
    y, _ = fill(linear.linear_fwd, (x, weight, bias, "", 0.0, 0.0, True), x.new_empty(M, N), x.new_empty(M, N))

    def reference(dtype):
        a, w, d = x.to(dtype), weight.to(dtype), dy.to(dtype)
        return F.linear(a, w, bias.to(dtype)), d @ w, d.t() @ a, d.sum(0)

    assert_error_within((y, *grads), reference(dtype), reference(torch.float64), x, weight, dy)


def test_a_long_float32_sum_is_a_sum_of_parts():
    """As a weight's gradient over many rows. Equal terms all round the same way: one sum after another would drift."""
    a, b = torch.full((8, 1 << 13), 1.1), torch.ones(1 << 13, 8)
    (ours,) = fill(linear.matmul, (a, b), torch.empty(8, 8))
    truth = a.double() @ b.double()
    # Rounding after each term or block as the kernel does: 12 eps in parts of 512, 207 in one sum; in the interpreter,
    # where a block's product is numpy's, 2 and 21.
    assert (ours - truth).abs().max() <= 16 * torch.finfo(torch.float32).eps * truth.max()


@pytest.mark.parametrize("bias", ["row", "matrix"])
def test_a_wide_tile_is_finished_in_halves(monkeypatch, bias):
    """300 columns: the second tile ends within its first half."""
    monkeypatch.setitem(tuning.TRIAL, "matmul", tuning._product(32, 256, 32, 8, 3))
    x, weight = torch.randn(40, 50).bfloat16(), torch.randn(300, 50).bfloat16()
    bias = torch.randn(300 if bias == "row" else (40, 300)).bfloat16()

    def reference(dtype):
        preact = x.to(dtype) @ weight.to(dtype).t() + bias.to(dtype)
        return F.silu(preact), preact

    outputs = x.new_empty(40, 300), x.new_empty(40, 300)
    ours = fill(linear.linear_fwd, (x, weight, bias, "silu", 0.0, 0.0, True), *outputs)
    assert_error_within(ours, reference(torch.bfloat16), reference(torch.float64), x, weight)


def test_matmul_takes_any_strides():
    a, b = torch.randn(33, 80)[:, ::2], torch.randn(1, 50).expand(40, 50)
    ours = fill(linear.matmul, (a, b), torch.empty(50, 33).t())
    assert_error_within(ours, (a @ b,), (a.double() @ b.double(),), a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "rows, cols, residual, affine",
    [
        (1, 1, False, True),
        (7, 37, True, True),
        (70, 64, True, True),
        (3, 5000, False, True),  # from here on in blocks, in the interpreter
        (5, 4097, True, True),
        (3, 8192, True, False),
        (40, 8, False, False),
        (90, 200, False, True),  # a program's loop goes round
        pytest.param(300, 8192, True, True, marks=ON_A_GPU),
        pytest.param(300, 32768, True, True, marks=ON_A_GPU),
        pytest.param(2, (1 << 20) + 1, False, True, marks=ON_A_GPU),
        (0, 8, True, True),
    ],
)
def test_layer_norm(rows, cols, residual, affine, dtype):
    x, dy = torch.randn(rows, 2 * cols)[:, :cols].to(dtype), torch.randn(rows, cols).to(dtype)
    residual, dsummed = (torch.randn(rows, cols).to(dtype) if residual else None for _ in range(2))
    weight, bias = (torch.randn(cols).to(dtype) if affine else None for _ in range(2))
    stats = torch.float64 if dtype == torch.float64 else torch.float32
    outputs = dy.new_empty(rows, cols), dy.new_empty(rows, cols), *(torch.empty(rows, dtype=stats) for _ in range(2))
    y, summed, mean, rstd = fill(layer_norm.layer_norm_fwd, (x, residual, weight, bias, 1e-5), *outputs)
    if residual is None:
        summed = x
    else:
        assert torch.equal(summed, x + residual)
    args = dy, dsummed, summed, weight, mean, rstd, True, affine, affine
    sizes = [(rows, cols)] + [(cols,) if affine else (0,)] * 2
    grads = fill(layer_norm.layer_norm_bwd, args, *(dy.new_empty(size) for size in sizes))
    ours = y, *(grads if affine else grads[:1])

    def reference(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (summed.detach().clone(), weight, bias) if t is not None]
        y = F.layer_norm(leaves[0], (cols,), *leaves[1:])
        total = (y * dy.to(dtype)).sum() + (0 if dsummed is None else (leaves[0] * dsummed.to(dtype)).sum())
        return y.detach(), *torch.autograd.grad(total, leaves)

    assert_error_within(ours, reference(dtype), reference(torch.float64), dy, *(t for t in (weight, bias) if affine))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.7, 1.0])
def test_dropout_counts_elements(p, dtype):
    """Element n: block n // 64, counter block * 16 + n % 16, word n // 16 % 4."""
    n = torch.arange(1500)
    counter = n // 64 * 16 + n % 16
    zero = torch.zeros_like(n)
    words = torch.stack(philox((counter, zero, zero, zero), (SEED & 0xFFFFFFFF, SEED >> 32 & 0xFFFFFFFF)))
    keep = words.gather(0, (n // 16 % 4)[None])[0] >= int(p * 2**32)
    x = torch.randn(1500).to(dtype)
    wide = x if dtype == torch.float64 else x.float()
    expected = torch.where(keep, wide * (1 / (1 - p) if p < 1 else 0.0), 0.0).to(dtype)
    (y,) = fill(dropout.dropout, (x, torch.tensor([SEED]), p), torch.empty_like(x))
    assert torch.equal(y, expected)


def test_philox_is_the_published_one():
    """The known answers of Random123 for zero and for all ones."""
    zero, ones = torch.zeros(1, dtype=torch.int64), torch.full((1,), 0xFFFFFFFF)
    assert [w.item() for w in philox((zero,) * 4, (0, 0))] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [w.item() for w in philox((ones,) * 4, (0xFFFFFFFF,) * 2)] == [
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    ]


@triton.jit
def _apply(x_ptr, y_ptr, size, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < size, other=0.0)
    tl.store(y_ptr + offs, FUNCTION(x), mask=offs < size)


# What a GPU may add: its 2^x and its division are within 2 ulp each, the interpreter's within a half. tanh's are at most
# a third of the result; expm1 and log1p have neither, and log1p a logarithm of its own.
ON_HARDWARE = {"exp": 1.5, "tanh": 1, "sigmoid": 3, "normal_cdf": 3, "normal_pdf": 1.5}
FUNCTIONS = {  # name: truth in float64, ulp
    "exp": (torch.exp, 2),
    "expm1": (torch.expm1, 2),
    "log1p": (torch.log1p, 4),
    "tanh": (torch.tanh, 2),
    "sigmoid": (torch.sigmoid, 3),
    "normal_cdf": (lambda x: 0.5 * torch.special.erfc(-x / math.sqrt(2)), 5),
    "normal_pdf": (lambda x: torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi), 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions(name):
    truth, ulp = FUNCTIONS[name]
    if not backends.INTERPRETING:
        ulp += ON_HARDWARE.get(name, 0)
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0])
    x = torch.cat(
        [torch.randn(2000), torch.randn(2000) * 20, torch.linspace(-104, 89, 2000), 10 ** -torch.rand(500) * 1e-3]
    )
    x = torch.cat([special, x[x > -1] if name == "log1p" else x])
    y = torch.empty_like(x)
    _apply[(1,)](x, y, len(x), FUNCTION=getattr(primitives, name), BLOCK=triton.next_power_of_2(len(x)))
    expected = truth(x.double())
    torch.testing.assert_close(y[:5].double(), expected[:5], equal_nan=True)
    normal = (expected.abs() > torch.finfo(torch.float32).tiny) & (expected.abs() < torch.finfo(torch.float32).max)
    exponent = torch.frexp(expected[normal])[1]
    assert ((y[normal] - expected[normal]).abs() / torch.exp2(exponent.double() - 24)).max() <= ulp


def test_cast_rounds_to_nearest_even():
    x = torch.cat(
        [torch.randn(4000), torch.tensor([math.nan, math.inf, -math.inf, 1e-40, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8])]
    )
    y = torch.empty(len(x), dtype=torch.bfloat16)
    _cast[(1,)](x, y, len(x), BLOCK=8192)
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@triton.jit
def _cast(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < size)
    tl.store(y_ptr + offs, primitives.cast(x, y_ptr.dtype.element_ty), mask=offs < size)


def test_a_kernel_runs_on_the_device_of_its_tensors(monkeypatch):
    """Also where another one is current, as after model.to("cuda:1")."""
    current = [0]

    @contextmanager
    def switched(device):
        before, current[0] = current[0], torch.device(device).index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", switched)
    monkeypatch.setattr(activation, "activation_fwd", lambda x, *_: launched.append((x.device.index, current[0])))
    monkeypatch.setattr(backends, "INTERPRETING", False)
    monkeypatch.setitem(backends.MISSING, "triton", "")
    launched = []
    kernel = implementation("activation_fwd", OPS["activation_fwd"].kernels, "triton", "cuda")
    for index in (1, 0):
        kernel(SimpleNamespace(device=torch.device("cuda", index)), "relu", None)
    assert launched == [(1, 1), (0, 0)] and current == [0]
