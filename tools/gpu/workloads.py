"""Launches to tune and to profile: for each key of kernels/tuning.py one call of a launcher on a shape of its class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyflash.auto.recurrent import GATES
from pyflash.kernels import conv, linear, tuning
from pyflash.kernels.attention import decode as attention_decode
from pyflash.kernels.attention import dense as attention
from pyflash.kernels.attention import weights as attention_weights
from pyflash.kernels.norm import layer_norm, rms_norm
from pyflash.kernels.recurrent import layers as rnn

INTERPRETED = tuning.INTERPRETED.value
HALF, FLOAT = torch.bfloat16, torch.float32
RECURRENT_STEPS = 64  # as many roundings one after another stay within what the tuner allows


@dataclass(frozen=True)
class Key:
    """Args:
    name: function of kernels/tuning.py; shape: its arguments after the architecture.
    make: small -> (call, the outputs it fills). Small shapes are for the interpreter.
    operations: what a user calls it.
    """

    name: str
    shape: tuple
    make: Callable[[bool], tuple[Callable[[], object], list[torch.Tensor]]]
    operations: tuple[str, ...]

    @property
    def text(self) -> str:
        return tuning.TUNABLE[self.name].key(*self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        return *self.operations, self.name


def device() -> str:
    return "cpu" if INTERPRETED else "cuda"


def randn(*shape, dtype=HALF) -> torch.Tensor:
    return torch.randn(*shape, device=device(), dtype=FLOAT).to(dtype)


def empty(*shape, dtype=HALF) -> torch.Tensor:
    return torch.empty(*shape, device=device(), dtype=dtype)


def attention_call(kernel: str, dtype, head_dim: int, has_extras: bool):
    def make(small: bool):
        batch, heads, length = (1, 2, 40) if small else (4, 16, 4096 if dtype == HALF else 2048)
        q, k, v, dout = (randn(batch, length, heads, head_dim, dtype=dtype).transpose(1, 2) for _ in range(4))
        out, dq, dk, dv = (torch.empty_like(q) for _ in range(4))
        lse = empty(*((2,) if has_extras else ()), batch, heads, length, dtype=FLOAT)
        mask = randn(1, heads, length, length, dtype=dtype).expand(batch, -1, -1, -1) if has_extras else None
        seed = torch.zeros(1, dtype=torch.int64, device=device())
        options = mask, None, seed, 0.0, head_dim**-0.5, 0.0, -1, 0, 0

        def forward():
            attention.attention_fwd(q, k, v, *options, out, lse)

        def backward():
            attention.attention_bwd(dout, None, q, k, v, out, lse, *options, False, dq, dk, dv, None)

        forward()
        return (forward, [out, lse]) if kernel == "attention_fwd" else (backward, [dq, dk, dv])

    return make


def weights_call(kernel: str, dtype, head_dim: int, has_extras: bool):
    def make(small: bool):
        batch, heads, length = (1, 2, 40) if small else (4, 16, 2048 if dtype == HALF else 1024)
        q, k = (randn(batch, length, heads, head_dim, dtype=dtype).transpose(1, 2) for _ in range(2))
        dq, dk = (torch.empty_like(q) for _ in range(2))
        dweights = randn(batch, heads, length, length, dtype=dtype)
        weights, lse = torch.empty_like(dweights), empty(batch, heads, length, dtype=FLOAT)
        seed = torch.zeros(1, dtype=torch.int64, device=device())
        options = None, seed, 0.1 if has_extras else 0.0, head_dim**-0.5, 0.0, -1, -1, 0

        def forward():
            attention_weights.attention_weights_fwd(q, k, *options, weights, lse)

        def backward():
            attention_weights.attention_weights_bwd(dweights, q, k, weights, lse, *options, False, dq, dk, None)

        forward()
        return (forward, [weights, lse]) if kernel == "attention_weights_fwd" else (backward, [dq, dk])

    return make


def decode_call(head_dim: int):
    def make(small: bool):
        batch, keys = (1, 90) if small else (8, 8192)
        q, out = randn(batch, 32, 1, head_dim), empty(batch, 32, 1, head_dim)
        k, v = (randn(batch, 8, keys, head_dim) for _ in range(2))
        lengths = torch.full((batch,), keys, dtype=torch.int32, device=device())
        lse = empty(batch, 32, 1, dtype=FLOAT)
        return lambda: attention_decode.attention_decode(
            q, k, v, lengths, None, None, head_dim**-0.5, 0.0, -1, 0, out, lse
        ), [out, lse]

    return make


def matmul_call(dtype, M: int):
    def make(small: bool):
        rows, N, K = (min(M, 40), 70, 64) if small else (M, 4096, 4096)
        x, weight, y = randn(rows, K, dtype=dtype), randn(N, K, dtype=dtype), empty(rows, N, dtype=dtype)
        return lambda: linear.matmul(x, weight.t(), y), [y]

    return make


def conv_call(name: str, dtype, inputs: int, outputs: int, size: int, kernel: int, is_last: bool):
    """32 images, forward or the gradient of the weight."""

    def make(small: bool):
        batch, length = (1, 6) if small else (32, size)
        x, dy = (randn(batch, channels, length, length, dtype=dtype) for channels in (inputs, outputs))
        weight = randn(outputs, inputs, kernel, kernel, dtype=FLOAT).div_(inputs**0.5 * kernel).to(dtype)
        if is_last:
            x, dy, weight = (t.to(memory_format=torch.channels_last) for t in (x, dy, weight))
        y, dweight = torch.empty_like(dy), torch.empty_like(weight)
        geometry = (1, 1), (kernel // 2, kernel // 2), (1, 1), 1
        if name == "conv":
            return lambda: conv.conv_fwd(
                x, weight, None, None, None, y.shape[2:], *geometry, "", 0.0, 0.0, False, False, y, None
            ), [y]
        return lambda: conv.conv_weight_grad(dy, x, weight.shape[2:], *geometry, dweight), [dweight]

    return make


def row_call(cols: int):
    """Both norms: they share a row of the table."""

    def make(small: bool):
        rows = 20 if small else max(256, (32 << 20) // cols)
        x, dy = (randn(rows, cols) for _ in range(2))
        y, summed, dx = (empty(rows, cols) for _ in range(3))
        weight, bias, dweight, dbias = (randn(cols) for _ in range(4))
        mean, rstd = (empty(rows, dtype=FLOAT) for _ in range(2))
        rms_y, rms_dx, rms_dweight = (torch.empty_like(output) for output in (y, dx, dweight))
        rms_rstd = torch.empty_like(rstd)

        def both():
            layer_norm.layer_norm_fwd(x, None, weight, bias, 1e-5, y, summed, mean, rstd)
            layer_norm.layer_norm_bwd(dy, None, x, weight, mean, rstd, True, True, True, dx, dweight, dbias)
            rms_norm.rms_norm_fwd(x, None, weight, 1e-6, rms_y, summed, rms_rstd)
            rms_norm.rms_norm_bwd(dy, None, x, weight, rms_rstd, True, True, rms_dx, rms_dweight)

        return both, [y, dx, dweight, dbias, rms_y, rms_dx, rms_dweight]

    return make


def recurrent_call(kernel: str, dtype, cell: str, hidden: int):
    """One direction, gates stored; the products with the input are part of the call, as they are for a user."""

    def make(small: bool):
        length, batch, width = (3, 2, 20) if small else (RECURRENT_STEPS, 64, hidden)
        count = GATES[cell]
        x, dy = (randn(length, batch, width, dtype=dtype) for _ in range(2))
        h_0, c_0, dh_n, dc_n = (randn(1, batch, width, dtype=dtype) for _ in range(4))
        y, dx = (torch.empty_like(x) for _ in range(2))
        h_n, c_n, dh_0, dc_0 = (torch.empty_like(h_0) for _ in range(4))
        shapes = (count * width, width), (count * width, width), (count * width,), (count * width,)
        weights = [randn(*shape, dtype=FLOAT).div_(width**0.5).to(dtype) for shape in shapes]
        dweights = [torch.empty_like(weight) for weight in weights]
        is_lstm = cell == "lstm"
        cells = empty(1, length, batch, width, dtype=FLOAT) if is_lstm else empty(0, dtype=FLOAT)
        gates = empty(1, length, batch, 4, width, dtype=FLOAT) if count > 1 else empty(0, dtype=FLOAT)
        c_0, dc_n = (c_0, dc_n) if is_lstm else (None, None)
        form = None, None, cell, False  # nothing ragged, time first

        def forward():
            rnn.rnn_fwd(x, h_0, c_0, weights, *form, is_lstm, count > 1, y, h_n, c_n, cells, gates)

        def backward():
            needs = [True, True, is_lstm, *[True] * 4]
            grads = dx, dh_0, dc_0, *dweights
            ragged, shape = form[:2], form[2:]
            rnn.rnn_bwd(x, dy, dh_n, dc_n, None, h_0, c_0, weights, *ragged, y, cells, gates, *shape, needs, *grads)

        forward()
        states = [h_n, c_n] if is_lstm else [h_n]
        return (forward, [y, *states]) if kernel == "rnn_fwd" else (backward, [dx, dh_0, *dweights])

    return make


def _attention(name: str, dtype, head_dim: int, has_extras: bool = False) -> Key:
    return Key(name, (dtype, head_dim, has_extras), attention_call(name, dtype, head_dim, has_extras), ("attention",))


def _weights(name: str, dtype, head_dim: int, has_extras: bool = False) -> Key:
    call = weights_call(name, dtype, head_dim, has_extras)
    return Key(name, (dtype, head_dim, has_extras), call, ("attention_weights",))


def _matmul(dtype, M: int) -> Key:
    return Key("matmul", (dtype, M, 4096, 4096), matmul_call(dtype, M), ("linear",))


def _conv(name: str, inputs: int, outputs: int, size: int, kernel: int = 3, dtype=HALF, is_last: bool = True) -> Key:
    folds = inputs < 16  # then one sum goes over channels and taps
    shape = outputs, inputs * kernel**2 if folds else inputs, folds or not is_last
    shape = (dtype, 32 * size * size, *shape) if name == "conv" else (dtype, *shape)
    return Key(name, shape, conv_call(name, dtype, inputs, outputs, size, kernel, is_last), ("conv",))


def _rows(cols: int) -> Key:
    return Key("row_block", (cols,), row_call(cols), ("layer_norm", "rms_norm"))


def _recurrent(cell: str, hidden: int, dtype=HALF) -> list[Key]:
    shape = dtype, GATES[cell], hidden
    names = "rnn_fwd", "rnn_bwd"
    return [Key(name, shape, recurrent_call(name, dtype, cell, hidden), ("rnn",)) for name in names]


BACKWARD = "attention_bwd_dq", "attention_bwd_dkdv"
WEIGHTS = "attention_weights_fwd", "attention_weights_bwd_dq", "attention_weights_bwd_dk"
# ResNet's 3x3 of 128 and 64 channels at 28 and 56 places, the stem, a pointwise layer.
CONVOLUTIONS = (128, 128, 28), (64, 64, 56), (3, 64, 112, 7), (256, 1024, 14, 1)
# Most used first: a stopped search has done these.
KEYS = [
    *(_attention("attention_fwd", HALF, head_dim) for head_dim in (64, 128)),
    _matmul(HALF, 8192),
    *(_attention(name, HALF, head_dim) for head_dim in (64, 128) for name in BACKWARD),
    *(_rows(cols) for cols in (1024, 4096)),
    *(Key("attention_decode", (HALF, dim, 4), decode_call(dim), ("attention_decode",)) for dim in (128, 64)),
    *(_matmul(HALF, rows) for rows in (16, 512, 64)),
    *(key for hidden in (256, 512) for cell in ("lstm", "gru") for key in _recurrent(cell, hidden)),
    *(_conv("conv", *sizes) for sizes in CONVOLUTIONS),
    *(_conv("conv_weight_grad", *sizes) for sizes in CONVOLUTIONS[:3]),
    *(_attention(name, HALF, 64, True) for name in ("attention_fwd", *BACKWARD)),
    *(_rows(cols) for cols in (512, 2048, 8192)),
    *(_matmul(FLOAT, rows) for rows in (8192, 16)),
    *(_attention("attention_fwd", FLOAT, head_dim) for head_dim in (64, 128)),
    *(_attention(name, FLOAT, 64) for name in BACKWARD),
    *(key for hidden in (128, 1024, 64) for cell in ("lstm", "gru") for key in _recurrent(cell, hidden)),
    *(key for cell in ("lstm", "gru") for key in _recurrent(cell, 256, FLOAT)),
    *(key for hidden in (256, 128) for key in _recurrent("rnn_tanh", hidden)),
    *(_weights(name, HALF, 64, has_extras) for has_extras in (False, True) for name in WEIGHTS),
    *(_weights(name, dtype, dim) for dtype, dim in ((HALF, 128), (FLOAT, 64)) for name in WEIGHTS),
    *(_attention(name, HALF, head_dim) for head_dim in (32, 256) for name in ("attention_fwd", *BACKWARD)),
]


def poison(outputs: list[torch.Tensor]) -> None:
    for output in outputs:
        output.fill_(math.nan)
