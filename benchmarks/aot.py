"""Ahead-of-time table: what the shipped Triton configurations compile to, without a GPU.

The launchers themselves are called, on tensors without memory and with a driver that names the architecture, so the
table shows what a user's call would compile: arguments, specialisation and configuration alike.

    python -m benchmarks inspect [--check] [--full] [--triton DIR] [NAME ...]      (names are substrings; default SHORT)

writes the rows it compiles into benchmarks/results/aot.json, or with --check compares them with it. Another Triton than the
one that is installed, from `pip install --target DIR triton==3.6.0`, has a table of its own, aot-3.6.json.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "aot.json"
INSTALLED = "3.7"  # the Triton that TABLE is of

# Counted in the machine code. HMMA, HGMMA, UTCHMMA: tensor cores of sm_80, 90, 100. LDL, STL: spills. LDGSTS, UTMALDG:
# copies that need no register. TF32 must be absent from float32 kernels under "ieee". LDG.U16, STG.U16: loads and stores of two
# bytes, one element of a half type, where a thread could move eight at once; "narrow" counts those in the main loop. "serialised":
# how often ptxas says that it waits for every single product of a warp group (its C7510 to C7519).
TENSOR_CORES = ("HGMMA", "HMMA", "UTCHMMA")
INSTRUCTIONS = (*TENSOR_CORES, "LDL", "STL", "LDGSTS", "UTMALDG")
NARROW = re.compile(r"\b(LDG|STG)\.E\.U16\b")
SERIALISED = re.compile(r"wgmma\.mma_async instructions are serialized")

# What a multiprocessor has: (KB of shared memory, warps); every one has 65536 registers.
MULTIPROCESSOR = {80: (164, 64), 86: (100, 48), 90: (228, 64), 100: (228, 64)}

# W_hh in shared memory, re-read by a program that walks all steps, and a launch a step.
RECURRENT = (
    ("gru", "bfloat16", 64),
    ("lstm", "bfloat16", 128),
    ("lstm", "bfloat16", 512),
    ("lstm", "float32", 128),
    ("gru", "float32", 512),
)


# Rows that a program holds, longer ones, and columns of both kinds.
SOFTMAXES = (
    ("4096", (1024, 4096), 1),
    ("32768", (1024, 32768), 1),
    ("columns", (4, 64, 1024), 1),
    ("columns/1024", (4, 1024, 1024), 1),
)

# Convolutions: (label, channels of a group in and out, groups, size, kernel, stride, memory format, activation or gradient).
# ResNet-50's 3x3, its pointwise layers (row: contiguous, whose places are in a row), the first of a stage, its stem;
# ConvNeXt's and MobileNetV2's depthwise ones; ResNeXt's groups.
CONVOLUTIONS = (
    ("3x3/forward", 256, 256, 1, 14, 3, 1, "last", "relu"),
    ("3x3/input_grad", 256, 256, 1, 14, 3, 1, "last", "input_grad"),
    ("3x3/weight_grad", 256, 256, 1, 14, 3, 1, "last", "weight_grad"),
    ("3x3/gelu", 64, 64, 1, 56, 3, 1, "last", "gelu"),
    ("3x3/contiguous", 64, 64, 1, 56, 3, 1, "first", "gelu"),
    ("3x3/contiguous/weight_grad", 64, 64, 1, 56, 3, 1, "first", "weight_grad"),
    ("1x1/forward", 256, 1024, 1, 14, 1, 1, "last", ""),
    ("1x1/row", 64, 256, 1, 56, 1, 1, "first", "relu"),
    ("1x1/row/weight_grad", 64, 256, 1, 56, 1, 1, "first", "weight_grad"),
    ("stride/input_grad", 128, 128, 1, 56, 3, 2, "last", "input_grad"),
    ("stem/forward", 3, 64, 1, 224, 7, 2, "last", "relu"),
    ("stem/weight_grad", 3, 64, 1, 224, 7, 2, "last", "weight_grad"),
    ("depthwise/forward", 1, 1, 384, 28, 7, 1, "last", ""),
    ("depthwise/input_grad", 1, 1, 384, 28, 3, 2, "last", "input_grad"),
    ("depthwise/weight_grad", 1, 1, 384, 28, 7, 1, "last", "weight_grad"),
    ("depthwise/contiguous", 1, 1, 384, 28, 3, 1, "first", ""),
    ("groups/forward", 4, 4, 32, 56, 3, 1, "last", ""),
)

# What is compiled without a word: every kernel once for each architecture that the tests promise something of, at most
# 130 compilations. --full is everything.
SHORT = (
    *(
        f"sm{arch}/{case}"
        for arch in (80, 90)
        for case in (
            "attention/bfloat16/64",
            "attention/bfloat16/128",
            "attention/float32/64",
            "attention_weights/bfloat16/64",
            "decode/bfloat16/128",
            "linear/bfloat16/gelu",
            "recurrent/lstm/bfloat16/128",
            "row_wise/bfloat16",
            "resample/bfloat16",
        )
    ),
    "sm90/attention/bfloat16/64/bias",
    "sm90/linear/bfloat16/dgrad",
    "sm90/linear/bfloat16/wgrad",
    "sm90/layer_norm/bfloat16/32768",
    "sm90/rms_norm/bfloat16/4096",
    "sm90/channel_norm/bfloat16/batch",
    "sm90/embedding/bfloat16",
    "sm90/embedding_bag/float32",
    "sm90/rotary/bfloat16",
    "sm90/pool/bfloat16/2d",
    "sm80/conv/bfloat16/3x3/forward",
    "sm90/conv/bfloat16/3x3/gelu",
    "sm90/conv/bfloat16/3x3/contiguous",
    "sm90/conv/bfloat16/3x3/weight_grad",
    "sm90/conv/bfloat16/depthwise/forward",
    "sm90/conv/bfloat16/depthwise/weight_grad",
    "sm90/softmax/bfloat16/4096",
    "sm90/softmax/bfloat16/columns/1024",
    "sm100/attention/bfloat16/64",
    "sm100/decode/bfloat16/128",
    "sm100/linear/bfloat16/gelu",
)


def cases():
    """name -> (architecture, call, its arguments). A row of the table is a name and the kernel's."""
    rows = {}

    def add(arch, call, label, **arguments):
        rows[f"sm{arch}/{call.__name__}/{label}"] = (arch, call.__name__, arguments)

    for arch in (80, 86, 90, 100):
        for head_dim in (64, 128, 256):
            add(arch, attention, f"bfloat16/{head_dim}", dtype="bfloat16", head_dim=head_dim)
        add(arch, decode, "bfloat16/128", dtype="bfloat16", head_dim=128)
        add(arch, linear, "bfloat16/gelu", dtype="bfloat16")
        for kind in ("forward", "dgrad", "wgrad"):
            add(arch, linear, f"bfloat16/{kind}", dtype="bfloat16", kind=kind)
        if arch == 86:
            continue
        for head_dim in (64, 128):
            add(arch, attention, f"float32/{head_dim}", dtype="float32", head_dim=head_dim)
        for dtype in ("bfloat16", "float32"):
            add(arch, attention_weights, f"{dtype}/64", dtype=dtype, head_dim=64)
        add(arch, linear, "float32/gelu", dtype="float32")
    for arch in (80, 90):
        add(arch, attention, "float16/64", dtype="float16", head_dim=64)
        add(arch, attention, "bfloat16/96", dtype="bfloat16", head_dim=96)
        add(arch, attention, "bfloat16/64/full", dtype="bfloat16", head_dim=64, window=(-1, -1))
        add(arch, attention, "bfloat16/128/full", dtype="bfloat16", head_dim=128, window=(-1, -1))
        add(arch, attention, "bfloat16/64/window", dtype="bfloat16", head_dim=64, window=(256, 0))
        add(arch, attention, "bfloat16/64/bias", dtype="bfloat16", head_dim=64, window=(-1, -1), bias=True)
        add(arch, attention, "bfloat16/64/dropout", dtype="bfloat16", head_dim=64, dropout_p=0.1)
        add(arch, attention, "bfloat16/64/varlen", dtype="bfloat16", head_dim=64, varlen=True)
        for dtype in ("bfloat16", "float32"):
            add(arch, attention_weights, f"{dtype}/128", dtype=dtype, head_dim=128)
        extras = dict(dtype="bfloat16", window=(-1, 0), bias=True, dropout_p=0.1)
        for head_dim in (64, 128):
            add(arch, attention_weights, f"bfloat16/{head_dim}/extras", head_dim=head_dim, **extras)
        add(arch, row_wise, "bfloat16", dtype="bfloat16")
        for dtype in ("bfloat16", "float32"):
            add(arch, resample, dtype, dtype=dtype)
        for cols in (8192, 16384, 32768):
            add(arch, layer_norm, f"bfloat16/{cols}", dtype="bfloat16", cols=cols)
        for cols in (4096, 32768):
            add(arch, rms_norm, f"bfloat16/{cols}", dtype="bfloat16", cols=cols)
        add(arch, embedding, "bfloat16", dtype="bfloat16")
        add(arch, embedding_bag, "float32", dtype="float32")
        add(arch, rotary, "bfloat16", dtype="bfloat16")
        add(arch, pool, "bfloat16/2d", dtype="bfloat16")
        for label, sizes, dim in SOFTMAXES:
            add(arch, softmax, f"bfloat16/{label}", sizes=sizes, dim=dim)
        for label, groups, is_last in (("batch", 0, False), ("batch_last", 0, True), ("group_last", 32, True)):
            add(arch, channel_norm, f"bfloat16/{label}", dtype="bfloat16", groups=groups, is_last=is_last)
        for label, *form in CONVOLUTIONS:
            add(arch, conv, f"bfloat16/{label}", dtype="bfloat16", form=form)
        add(arch, conv, "float32/3x3/forward", dtype="float32", form=CONVOLUTIONS[0][1:])
        add(arch, conv, "float32/3x3/weight_grad", dtype="float32", form=CONVOLUTIONS[2][1:])
        for cell, dtype, hidden in RECURRENT:
            add(arch, recurrent, f"{cell}/{dtype}/{hidden}", cell=cell, dtype=dtype, hidden=hidden)
    return rows


def attention(empty, dtype, head_dim, window=(-1, 0), bias=False, dropout_p=0.0, varlen=False):
    """Forward and backward, causal unless said, 32 query heads on 8 key heads, in [batch, length, heads] order."""
    from pyflash.kernels.attention import dense as kernels

    scalars = dropout_p, head_dim**-0.5, 0.0, *window
    seed = empty(1, dtype="int64")
    if varlen:
        q, out, dout, dq = (empty(4096, 32, head_dim, dtype=dtype) for _ in range(4))
        k, v, dk, dv = (empty(4096, 8, head_dim, dtype=dtype) for _ in range(4))
        lse, cu_seqlens = empty(32, 4096), empty(5, dtype="int32")
        lengths = None, seed, 1024, 1024
        kernels.attention_varlen_fwd(q, k, v, cu_seqlens, cu_seqlens, *lengths, *scalars, True, out, lse)
        kernels.attention_varlen_bwd(
            dout, None, q, k, v, out, lse, cu_seqlens, cu_seqlens, *lengths, *scalars, True, dq, dk, dv
        )
        return
    q, out, dout, dq = (empty(4, 1024, 32, head_dim, dtype=dtype).transpose(1, 2) for _ in range(4))
    k, v, dk, dv = (empty(4, 1024, 8, head_dim, dtype=dtype).transpose(1, 2) for _ in range(4))
    lse = empty(*((2,) if bias else ()), 4, 32, 1024)
    mask = empty(1, 32, 1024, 1024, dtype=dtype).expand(4, -1, -1, -1) if bias else None
    dmask = empty(1, 32, 1024, 1024, dtype=dtype) if bias else None
    kernels.attention_fwd(q, k, v, mask, None, seed, *scalars, 0, out, lse)
    kernels.attention_bwd(dout, None, q, k, v, out, lse, mask, None, seed, *scalars, 0, bias, dq, dk, dv, dmask)


def attention_weights(empty, dtype, head_dim, window=(-1, -1), bias=False, dropout_p=0.0):
    """Forward and backward of the matrix, all keys visible unless said, as nn.MultiheadAttention asks for it."""
    from pyflash.kernels.attention import weights as kernels

    scalars = dropout_p, head_dim**-0.5, 0.0, *window, 0
    seed = empty(1, dtype="int64")
    q, k, dq, dk = (empty(4, 1024, 16, head_dim, dtype=dtype).transpose(1, 2) for _ in range(4))
    weights, dweights = (empty(4, 16, 1024, 1024, dtype=dtype) for _ in range(2))
    lse = empty(*((2,) if bias else ()), 4, 16, 1024)
    mask = empty(1, 16, 1024, 1024, dtype=dtype).expand(4, -1, -1, -1) if bias else None
    dmask = empty(1, 16, 1024, 1024, dtype=dtype) if bias else None
    kernels.attention_weights_fwd(q, k, mask, seed, *scalars, weights, lse)
    kernels.attention_weights_bwd(dweights, q, k, weights, lse, mask, seed, *scalars, bias, dq, dk, dmask)


def decode(empty, dtype, head_dim):
    from pyflash.kernels.attention import decode as kernels

    q, out = (empty(1, 32, 1, head_dim, dtype=dtype) for _ in range(2))
    k, v = (empty(1, 8, 8192, head_dim, dtype=dtype) for _ in range(2))
    kernels.attention_decode(q, k, v, empty(1, dtype="int32"), None, 1.0, 0.0, -1, 0, out, empty(1, 32, 1))


def linear(empty, dtype, kind="gelu"):
    """The product with a fused GELU, or one of the three that a plain layer takes."""
    from pyflash.kernels import linear as kernels

    x, weight, bias = empty(1024, 512, dtype=dtype), empty(2048, 512, dtype=dtype), empty(2048, dtype=dtype)
    y, preact = (empty(1024, 2048, dtype=dtype) for _ in range(2))
    if kind == "gelu":
        kernels.linear_fwd(x, weight, bias, "gelu", 0.0, 0.0, True, y, preact)
    elif kind == "forward":
        kernels.linear_fwd(x, weight, bias, "", 0.0, 0.0, False, y, None)
    else:
        grads = empty(1024, 512, dtype=dtype), empty(2048, 512, dtype=dtype), bias
        kernels.linear_bwd(y, x, weight, None, "", 0.0, 0.0, kind == "dgrad", kind == "wgrad", False, *grads)


def conv(empty, dtype, form):
    """A forward with what follows it, an input gradient or a weight gradient, of 32 images."""
    from pyflash.kernels import conv as kernels

    inputs, outputs, groups, size, kernel, stride, layout, what = form

    def image(channels, size):
        shape = (32, channels, size, size) if layout == "first" else (32, size, size, channels)
        return empty(*shape, dtype=dtype) if layout == "first" else empty(*shape, dtype=dtype).permute(0, 3, 1, 2)

    x, (y, preact, residual) = image(inputs * groups, size), (image(outputs * groups, size // stride) for _ in range(3))
    shape = (outputs * groups, inputs, kernel, kernel)
    weight = empty(*shape, dtype=dtype)
    if layout == "last":
        weight = empty(*(shape[i] for i in (0, 2, 3, 1)), dtype=dtype).permute(0, 3, 1, 2)
    bias = empty(outputs * groups, dtype=dtype)
    geometry = (stride, stride), (kernel // 2, kernel // 2), (1, 1), groups
    if what == "input_grad":
        kernels.conv_input_grad(y, weight, None, x.shape[2:], *geometry, x)
    elif what == "weight_grad":
        kernels.conv_weight_grad(y, x, weight.shape[2:], *geometry, weight)
    else:
        kernels.conv_fwd(
            x,
            weight,
            None,
            bias,
            residual if what else None,
            y.shape[2:],
            *geometry,
            what,
            0.0,
            0.0,
            what == "gelu",
            y,
            preact,
        )


def recurrent(empty, cell, dtype, hidden):
    """One direction of 64 rows, 128 steps; the backward of stored gates."""
    from pyflash.auto.recurrent import GATES
    from pyflash.kernels.recurrent import layers as kernels

    gates, length, batch = GATES[cell], 128, 64
    x, y, dy, dx = (empty(length, batch, hidden, dtype=dtype) for _ in range(4))
    h_0, c_0, h_n, c_n, dh_n, dc_n, dh_0, dc_0 = (empty(1, batch, hidden, dtype=dtype) for _ in range(8))
    shapes = (gates * hidden, hidden), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)
    weights, dweights = ([empty(*shape, dtype=dtype) for shape in shapes] for _ in range(2))
    cells, saved = empty(1, length, batch, hidden), empty(1, length, batch, 4, hidden)
    if cell != "lstm":
        c_0 = dc_n = None
    if cell.startswith("rnn"):
        saved = empty(0)
    form = cell, False
    kernels.rnn_fwd(x, h_0, c_0, weights, None, None, *form, True, True, y, h_n, c_n, cells, saved)
    needs = [True, True, c_0 is not None, *[True] * 4]
    kernels.rnn_bwd(
        x, dy, dh_n, dc_n, None, h_0, c_0, weights, None, None, y, cells, saved, *form, needs, dx, dh_0, dc_0, *dweights
    )


def layer_norm(empty, dtype, cols):
    """Rows that no program holds in its registers."""
    from pyflash.kernels.norm import layer_norm as kernels

    x, y, dx = (empty(1024, cols, dtype=dtype) for _ in range(3))
    weight, bias, dweight, dbias = (empty(cols, dtype=dtype) for _ in range(4))
    mean, rstd = empty(1024), empty(1024)
    kernels.layer_norm_fwd(x, None, weight, bias, 1e-5, y, None, mean, rstd)
    kernels.layer_norm_bwd(y, None, x, weight, mean, rstd, True, True, True, dx, dweight, dbias)


def rms_norm(empty, dtype, cols):
    """LayerNorm's kernels without a mean: what is left of them. In registers up to 8192 columns."""
    from pyflash.kernels.norm import rms_norm as kernels

    x, y, dx = (empty(1024, cols, dtype=dtype) for _ in range(3))
    weight, dweight = (empty(cols, dtype=dtype) for _ in range(2))
    rstd = empty(1024)
    kernels.rms_norm_fwd(x, None, weight, 1e-6, y, None, rstd)
    kernels.rms_norm_bwd(y, None, x, weight, rstd, True, True, dx, dweight)


def embedding(empty, dtype):
    """BERT's words, 8 x 512 of them: look-up, gradient and renormalised rows."""
    from pyflash.kernels.embedding import embedding as kernels

    weight, dweight = (empty(30522, 768, dtype=dtype) for _ in range(2))
    y, indices = empty(4096, 768, dtype=dtype), empty(4096, dtype="int64")
    kernels.embedding_fwd(weight, indices, y)
    kernels.embedding_bwd(y, indices, 30522, 0, False, dweight)
    kernels.embedding_renorm(weight, indices, 1.0, 2.0, y)


def embedding_bag(empty, dtype):
    """DLRM's, 2048 bags of 32: the sum with factors, the gradients of table and factors, and the maximum's."""
    from pyflash.kernels.embedding import bag as kernels

    weight, dweight, y = empty(100000, 64, dtype=dtype), empty(100000, 64, dtype=dtype), empty(2048, 64, dtype=dtype)
    indices, factors, dfactors = empty(65536, dtype="int64"), empty(65536, dtype=dtype), empty(65536, dtype=dtype)
    bounds, counts, winners = (empty(*shape, dtype="int64") for shape in ((2049,), (2048,), (2048, 64)))
    for mode, per_sample in (("max", None), ("sum", factors)):  # one row of the table a kernel: the last
        kernels.embedding_bag_fwd(weight, indices, bounds, per_sample, mode, -1, y, counts, winners)
        kernels.embedding_bag_bwd(y, indices, bounds, per_sample, counts, winners, 100000, mode, -1, False, dweight)
    kernels.embedding_bag_dots(y, weight, indices, bounds, -1, dfactors)


def rotary(empty, dtype):
    """Llama's: views of projections, each with both ways to pair elements."""
    from pyflash.kernels.embedding import rotary as kernels

    x, y = (empty(1, 2048, 32, 128, dtype=dtype).transpose(1, 2) for _ in range(2))
    cos, sin = empty(1, 2048, 64), empty(1, 2048, 64)
    for interleaved in (True, False):  # one row of the table: the last
        kernels.rotary(x, cos, sin, interleaved, False, y)


def pool(empty, dtype):
    """Windows of 3 x 3 that overlap, on images."""
    from pyflash.kernels.pool import avg_pool, max_pool, max_unpool

    x, dx, (y, dy) = (
        *(empty(8, 64, 112, 112, dtype=dtype) for _ in range(2)),
        [empty(8, 64, 56, 56, dtype=dtype) for _ in range(2)],
    )
    indices = empty(8, 64, 56, 56, dtype="int32")
    windows = (56, 56), (3, 3), (2, 2), (1, 1)
    max_pool.max_pool_fwd(x, *windows, (1, 1), 32, y, indices)
    max_pool.max_pool_bwd(dy, indices, x.shape, False, *windows, (1, 1), dx)
    avg_pool.avg_pool_fwd(x, *windows, True, 0, y)
    avg_pool.avg_pool_bwd(dy, x.shape, False, *windows, True, 0, dx)
    places = empty(8, 64, 56, 56, dtype="int64")
    max_unpool.max_unpool_fwd(y, places, (112, 112), False, x)
    max_unpool.max_unpool_bwd(dx, places, 2, False, dy)


def softmax(empty, sizes, dim):
    """Softmax of a half type into float32, as attention's scores, and its backward; the logarithm in one type."""
    from pyflash.kernels.softmax import softmax as kernels

    x, dx, log_y = (empty(*sizes, dtype="bfloat16") for _ in range(3))
    y, dy = empty(*sizes), empty(*sizes)
    kernels.softmax_fwd(x, dim, "log_softmax", log_y.dtype, log_y)
    kernels.softmax_fwd(x, dim, "softmax", y.dtype, y)
    kernels.softmax_bwd(dy, y, dim, "softmax", dx.dtype, dx)


def channel_norm(empty, dtype, groups, is_last):
    """BatchNorm with ReLU, or GroupNorm with SiLU, after a residual, and the norms of a pixel's channels; 8 images of 256."""
    from pyflash.kernels.norm import channels as kernels
    from pyflash.kernels.norm import local_response, normalize

    batch, channels, positions = 8, 256, 3136
    shape = (batch, positions, channels) if is_last else (batch, channels, positions)
    x, residual, y, dy, dx, dresidual = (empty(*shape, dtype=dtype) for _ in range(6))
    if is_last:
        x, residual, y, dy, dx, dresidual = (t.transpose(1, 2) for t in (x, residual, y, dy, dx, dresidual))
    weight, bias, running, new = (empty(channels) for _ in range(4))
    mean, rstd = (empty(batch * groups if groups else channels) for _ in range(2))
    tracked = (None, None) if groups else (running, running)
    ending = "silu" if groups else "relu", 0.0, 0.0
    kernels.channel_norm_fwd(
        x, residual, weight, bias, *tracked, groups, True, 0.1, 1e-5, *ending, y, mean, rstd, new, new
    )
    kernels.channel_norm_bwd(
        dy, x, residual, weight, bias, mean, rstd, groups, True, *ending, not groups, *[True] * 4, dx, dresidual, weight,
        bias,
    )  # fmt: skip
    local_response.local_response_norm_fwd(x, 5, 1e-4, 0.75, 2.0, y)
    local_response.local_response_norm_bwd(dy, x, 5, 1e-4, 0.75, 2.0, dx)
    shape = (batch * positions, channels, 1) if is_last else (batch, channels, positions)
    x, y, dy, dx = (empty(*shape, dtype=dtype) for _ in range(4))
    norm = empty(shape[0], shape[2])
    normalize.normalize_fwd(x, "two", 1e-12, y, norm)
    normalize.normalize_bwd(dy, x, norm, "two", 1e-12, dx)


def row_wise(empty, dtype):
    """LayerNorm with a residual, dropout and an activation, and what is pointwise besides."""
    from pyflash.kernels.norm import layer_norm
    from pyflash.kernels.pointwise import activation, bias_act, dropout, gated, prelu, rrelu

    x, residual, y, summed = (empty(4096, 1024, dtype=dtype) for _ in range(4))
    weight, bias, dweight, dbias = (empty(1024, dtype=dtype) for _ in range(4))
    mean, rstd = empty(4096), empty(4096)
    layer_norm.layer_norm_fwd(x, residual, weight, bias, 1e-5, y, summed, mean, rstd)
    layer_norm.layer_norm_bwd(y, x, summed, weight, mean, rstd, True, True, True, residual, dweight, dbias)
    seed, sums = empty(1, dtype="int64"), empty(1024)
    dropout.dropout(x, seed, 0.1, y)
    activation.activation_fwd(x, "gelu", 0.0, 0.0, y)
    bias_act.bias_act_fwd(x, bias, residual, seed, 1, "gelu", 0.0, 0.0, 1.0, -1.0, 0.1, y)
    bias_act.bias_act_bwd(y, x, bias, seed, 1, "gelu", 0.0, 0.0, 1.0, -1.0, 0.1, True, residual, sums)
    gated.gated_fwd(x, residual, False, "silu", 0.0, 0.0, y)
    gated.gated_bwd(y, x, residual, False, "silu", 0.0, 0.0, y, summed)
    prelu.prelu_fwd(x, weight, y)
    prelu.prelu_bwd(y, x, weight, True, residual, sums)
    rrelu.rrelu(x, x, seed, 0.1, 0.3, y)


def resample(empty, dtype):
    """An image of twice the size, bilinear; its gradient has the same kernel."""
    from pyflash.kernels.resample import resample as kernels
    from pyflash.ops.resample.tables import identity, interpolated

    x, y = empty(8, 64, 64, 64, dtype=dtype), empty(8, 64, 128, 128, dtype=dtype)
    axis = interpolated("bilinear", False, 64, 128, 0.0, False, False, False)
    kernels.resample(x, 8 * 64, (identity(1), axis, axis), 1, 0.0, y)


class Driver:
    """What Triton asks of a driver to compile for an architecture (90 is sm_90) that is not here."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_device(self):  # by which a kernel keeps what was compiled
        return self.arch

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self):
        import torch

        return torch.device("meta")


def compile_case(name):
    """{kernel: what it compiled to} for one case; in a process of its own, where nothing is interpreted."""
    os.environ.pop("TRITON_INTERPRET", None)
    import torch
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from pyflash.kernels import tuning

    arch, call, arguments = cases()[name]

    compiled, logs = {}, {}
    launch = JITFunction.run

    def only_compile(self, *args, grid, warmup, **kwargs):
        name = self.fn.__name__.lstrip("_")
        with contextlib.redirect_stdout(io.StringIO()) as log:
            kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if log.getvalue():  # of a kernel that this process has compiled before there is none
            compiled[name], logs[name] = kernel, log.getvalue()
        return kernel

    def empty(*shape, dtype="float32"):
        return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")

    knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = (
        True  # a kernel from the cache comes without warnings
    )
    driver.set_active(Driver(arch))
    JITFunction.run = only_compile
    tuning.arch = lambda device: tuning.arch_of(divmod(arch, 10))
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # torch's default is TF32
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        globals()[call](empty, **arguments)
    finally:
        JITFunction.run = launch
    return {kernel: _measure(binary, arch, logs[kernel]) for kernel, binary in compiled.items()}


def occupancy(arch, registers, shared, warps):
    """Blocks of that many warps that a multiprocessor holds at once. Registers go by 8 a thread, shared memory by KB."""
    kilobytes, most_warps = MULTIPROCESSOR[arch]
    by_registers = 65536 // (32 * warps * (-(-registers // 8) * 8))
    by_shared = kilobytes // (-(-shared // 1024) + 1)  # 1 KB of each block is the system's
    return min(by_registers, by_shared, most_warps // warps, 32)


def _measure(kernel, arch, log):
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        code = _output(knobs.nvidia.nvdisasm.path, "-c", file.name)
    row = {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spill_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "blocks": 0,
        "instructions": len(re.findall(r"/\*[0-9a-f]{4,}\*/", code)),
    }
    row["blocks"] = occupancy(arch, row["registers"], row["shared"], row["warps"])
    row |= {name: len(re.findall(rf"\b{name}\b", code)) for name in INSTRUCTIONS}
    row |= {"TF32": code.count("TF32")}
    narrow = Counter(NARROW.findall(code))
    row |= {"LDG.U16": narrow["LDG"], "STG.U16": narrow["STG"], "narrow": _narrow(code)}
    return row | {"serialised": len(SERIALISED.findall(log))}


def _narrow(code):
    """Accesses of two bytes in the main loop. Where tiles at an edge take a loop of their own, with comparisons that no wide
    access survives, the main one of those with products is the one with fewest."""
    loops = _loops(code)
    counts = [len(NARROW.findall(loop)) for loop in loops if any(re.search(rf"\b{op}\b", loop) for op in TENSOR_CORES)]
    return min(counts) if counts else sum(len(NARROW.findall(loop)) for loop in loops)


def _loops(code):
    """The innermost loops: what a jump back goes over, without another one inside."""
    lines = code.splitlines()
    labels, spans = {}, []
    for i, line in enumerate(lines):
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = i
        jump = re.search(r"\bBRA\b.*?`\((\.L_\w+)\)", line)
        if jump and jump[1] in labels and all(first < labels[jump[1]] for first, _ in spans):
            spans.append((labels[jump[1]], i))
    return ["\n".join(lines[first:last]) for first, last in spans]


def _output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def source_hash():
    """Of everything the table depends on besides triton and its ptxas."""
    files = [*sorted((ROOT / "kernels").rglob("*.py")), Path(__file__)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def worse(old, new):
    """What a row has lost against another, in words; empty when nothing. More registers matter where blocks are lost."""
    found = []
    if new["spill_bytes"] > old["spill_bytes"]:
        found.append(f"spills {new['spill_bytes']} bytes, {old['spill_bytes']} before")
    if new["blocks"] < old["blocks"]:
        found.append(f"{new['blocks']} blocks a multiprocessor, {old['blocks']} before ({new['registers']} registers)")
    if any(old[name] for name in TENSOR_CORES) and not any(new[name] for name in TENSOR_CORES):
        found.append("no tensor-core instruction left")
    if new["TF32"] and not old["TF32"]:
        found.append("TF32 in a product that was exact")
    for name, what in (
        ("narrow", "accesses of two bytes in its main loop"),
        ("serialised", "products of a warp group serialised"),
    ):
        if new.get(name, 0) > old.get(name, new.get(name, 0)):
            found.append(f"{new[name]} {what}, {old[name]} before")
    return found


def compile_cases(names, jobs=2):
    """{case/kernel: row}, with a line of progress for each case."""
    table = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for done, (name, rows) in enumerate(zip(names, pool.map(compile_case, names), strict=True), 1):
            table |= {f"{name}/{kernel}": row for kernel, row in rows.items()}
            print(f"[{done}/{len(names)}] {name}", file=sys.stderr, flush=True)
    return table


def run_with(options):
    """The same in another process, which finds that Triton before the installed one."""
    words = ["--check"] * options.check + ["--full"] * options.full + ["--jobs", str(options.jobs), *options.names]
    path = os.pathsep.join([str(options.triton.resolve()), os.environ.get("PYTHONPATH", "")])
    environ = os.environ | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, "-m", "benchmarks", "inspect", *words], cwd=ROOT, env=environ).returncode


def add_arguments(parser):
    parser.add_argument("names", nargs="*", help="compile only cases with one of these in their name")
    parser.add_argument("--check", action="store_true", help="compare with the committed table; exit 1 if it differs")
    parser.add_argument("--full", action="store_true", help="compile all cases, which takes several minutes")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--triton", type=Path, help="folder with another Triton, which has a table of its own")


def table_of(version):
    """The file for a Triton: one for the installed minor version, one for each other that was asked for."""
    minor = ".".join(version.split(".")[:2])
    return TABLE if minor == INSTALLED else TABLE.with_name(f"aot-{minor}.json")


def run(options):
    if options.triton is not None:
        if not (options.triton / "triton").is_dir():
            print(f"benchmarks: --triton is {options.triton}, which holds no folder triton", file=sys.stderr)
            return 2
        return run_with(options)
    try:
        import triton
    except ImportError:
        print("benchmarks: inspect needs triton, which is not installed", file=sys.stderr)
        return 2
    if options.jobs < 1:
        print(f"benchmarks: --jobs is {options.jobs}, and at least 1 is needed", file=sys.stderr)
        return 2
    names = list(cases()) if options.names or options.full else list(SHORT)
    if options.names:
        names = [name for name in names if any(part in name for part in options.names)]
    if not names:
        print(f"benchmarks: no case is called so; there are {', '.join(cases())}", file=sys.stderr)
        return 2
    rows = compile_cases(names, options.jobs)
    path = table_of(triton.__version__)
    committed = json.loads(path.read_text()) if path.exists() else {"triton": triton.__version__, "rows": {}}
    if options.check:
        if committed["triton"] != triton.__version__:
            print(f"the table is of triton {committed['triton']}, this is {triton.__version__}: nothing to compare")
            return 0
        changed = {name: row for name, row in rows.items() if committed["rows"].get(name) != row}
        for name, row in changed.items():
            print(f"{name}\n  committed {committed['rows'].get(name)}\n  compiled  {row}")
        return int(bool(changed))
    is_whole = options.full and not options.names
    merged = rows if is_whole else committed["rows"] | rows
    # Where only a part is written anew, the other rows may still be older kernels': the tests then compile what matters again.
    sources = source_hash() if is_whole else committed.get("sources", "")
    table = {"triton": triton.__version__, "sources": sources, "rows": dict(sorted(merged.items()))}
    lines = json.dumps(table, indent=1)
    path.write_text(
        re.sub(r"\{\n\s+(\"registers[^}]*?)\n\s+\}", lambda m: "{" + " ".join(m[1].split()) + "}", lines) + "\n"
    )
    for name, row in rows.items():
        print(name, " ".join(f"{key}={value}" for key, value in row.items()))
    for name, row in rows.items():
        before = committed["rows"].get(name, {})
        for loss in worse(before, row) if "blocks" in before else ():
            print(f"worse: {name}: {loss}")
    return 0
