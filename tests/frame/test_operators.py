"""Every operator keeps the rules of torch.library: schema, aliasing, fake tensors, tracing. One row each, or more."""

from __future__ import annotations

import pytest
import torch

import pyflash.functional
import pyflash.ops.recurrent.operators  # noqa: F401  registers the operators
from pyflash.ops.core.registry import OPS

SEED = torch.tensor([7])
WHOLE = (0.0, 0.5, 0.0, -1, 0, 0)  # dropout_p, softmax_scale, softcap, window left and right, diagonal
RANDOM = (0.1, 0.3, 0.0, -1, 0, 0)


def matrix(*shape):
    return torch.randn(*shape)


def saved(name, *args):
    """What the forward hands to its backward."""
    return getattr(torch.ops.pyflash, name)(*args, "torch")


def layer_norm_bwd():
    x, weight = matrix(6, 20), matrix(20)
    y, _, mean, rstd = saved("layer_norm_fwd", x, None, weight, None, 1e-5)
    for needs in ((True, True, True), (True, False, False), (False, True, False)):
        yield y, matrix(6, 20), x, weight, mean, rstd, *needs


def rms_norm_bwd():
    x, weight = matrix(6, 20), matrix(20)
    y, _, rstd = saved("rms_norm_fwd", x, None, weight, 1e-5)
    for needs in ((True, True), (True, False), (False, True)):
        yield y, matrix(6, 20), x, weight, rstd, *needs


def heads(length):
    return matrix(1, 2, length, 4)


def attention_bwd():
    q, k, v = heads(5), heads(6), heads(6)
    for mask in (matrix(6).expand(1, 2, 5, 6), matrix(1, 2, 5, 6)):
        out, lse = saved("attention_fwd", q, k, v, mask, None, SEED, *RANDOM)
        yield heads(5), None, q, k, v, out, lse, mask, None, SEED, *RANDOM, True


def weights_bwd():
    q, k = heads(5), heads(6)
    weights, lse = saved("attention_weights_fwd", q, k, None, None, *WHOLE)
    yield torch.randn_like(weights), q, k, weights, lse, None, None, *WHOLE, False
    mask = matrix(5, 6).expand(1, 2, 5, 6)
    weights, lse = saved("attention_weights_fwd", q, k, mask, SEED, *RANDOM)
    yield torch.randn_like(weights), q, k, weights, lse, mask, SEED, *RANDOM, True


CU_SEQLENS = torch.tensor([0, 3, 3, 9], dtype=torch.int32)


def packed(rows=9):
    return matrix(rows, 2, 8)


def varlen_bwd():
    q, k, v = packed(), packed(), packed()
    options = (CU_SEQLENS, CU_SEQLENS, None, SEED, 6, 6, 0.1, 0.3, 0.0, -1, 0, True)
    out, lse = saved("attention_varlen_fwd", q, k, v, *options)
    yield torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, *options


def recurrent(cell, *, projection=0, directions=1, layout="padded"):
    """Arguments of rnn_fwd: 3 steps of up to 4 sequences, 5 features, 6 hidden units."""
    gates, hidden, output = {"lstm": 4, "gru": 3}.get(cell, 1), 6, projection or 6
    x, rows, steps = matrix(3, 4, 5), None, None
    if layout == "packed":
        x, steps = matrix(8, 5), torch.tensor([4, 3, 1])
    elif layout == "ragged":
        x, rows, steps = matrix(4, 3, 5), torch.tensor([2, 0, 3, 1]), torch.tensor([3, 2, 2])
    weights = []
    for _ in range(directions):
        weights += [matrix(gates * hidden, 5), matrix(gates * hidden, output)]
        if layout != "ragged":  # there without biases
            weights += [matrix(gates * hidden), matrix(gates * hidden)]
        weights += [matrix(output, hidden)] if projection else []
    c_0 = matrix(directions, 4, hidden) if cell == "lstm" else None
    return x, matrix(directions, 4, output), c_0, weights, rows, steps, cell, layout == "ragged"


RECURRENT = (
    ("lstm", {}),
    ("lstm", {"projection": 2, "directions": 2, "layout": "ragged"}),
    ("gru", {"directions": 2, "layout": "packed"}),
    ("gru", {"layout": "ragged"}),
    ("rnn_tanh", {}),
    ("rnn_relu", {"layout": "packed"}),
)


def rnn_fwd():
    for i, (cell, options) in enumerate(RECURRENT):
        # gates past the end of a sequence are not defined
        yield *recurrent(cell, **options), i % 2 == 0, options.get("layout") != "ragged"


def rnn_bwd():
    for i, (cell, options) in enumerate(RECURRENT):
        for save_gates in (False, True):
            x, h_0, c_0, weights, rows, steps, *form = recurrent(cell, **options)
            y, h_n, c_n, cells, gates = saved("rnn_fwd", x, h_0, c_0, weights, rows, steps, *form, True, save_gates)
            douts = [torch.randn_like(y), torch.randn_like(h_n), None if c_0 is None else torch.randn_like(c_n), None]
            if save_gates:
                douts[1] = None
            elif c_0 is not None:
                douts[3] = torch.randn_like(cells)
            needs = [not save_gates or i % 2 == 0, True, c_0 is not None, *[True] * len(weights)]
            yield x, *douts, h_0, c_0, weights, rows, steps, y, cells, gates, *form, needs


ROWS = {
    "activation_fwd": lambda: [(matrix(3, 5), "gelu", 0.0, 0.0), (matrix(0, 5), "leaky_relu", 0.2, 0.0)],
    "activation_bwd": lambda: [(matrix(3, 5), matrix(3, 5), "leaky_relu", 0.2, 0.0)],
    "linear_fwd": lambda: [(matrix(4, 6), matrix(5, 6), matrix(5), "leaky_relu", 0.2, 0.0, True)],
    "linear_bwd": lambda: [
        (matrix(4, 5), matrix(4, 6), matrix(5, 6), matrix(4, 5), "gelu", 0.0, 0.0, True, True, True)
    ],
    "matmul": lambda: [(matrix(4, 6), matrix(5, 6).t())],
    "layer_norm_fwd": lambda: [
        (matrix(6, 20), matrix(6, 20), matrix(20), None, 1e-5),
        (matrix(6, 20), None, None, None, 1e-5),
    ],
    "layer_norm_bwd": layer_norm_bwd,
    "rms_norm_fwd": lambda: [
        (matrix(6, 20), matrix(6, 20), matrix(20), 1e-5),
        (matrix(6, 20), None, None, 1e-5),
    ],
    "rms_norm_bwd": rms_norm_bwd,
    "dropout": lambda: [(matrix(6, 20), SEED, 0.5)],
    "rnn_fwd": rnn_fwd,
    "rnn_cached_fwd": lambda: [
        (*recurrent("lstm", projection=2), True),
        (*recurrent("gru", layout="packed"), False),
    ],
    "rnn_step": lambda: [
        (matrix(3, 5), matrix(3, 4), None, [matrix(12, 5), matrix(12, 4)], "gru"),
        (matrix(3, 5), matrix(3, 4), matrix(3, 4), [matrix(16, 5), matrix(16, 4), matrix(16), matrix(16)], "lstm"),
    ],
    "rnn_bwd": rnn_bwd,
    "attention_fwd": lambda: [
        (heads(5), heads(6), heads(6), mask, None, None, *WHOLE) for mask in (None, matrix(1, 2, 5, 6))
    ],
    "attention_bwd": attention_bwd,
    "attention_weights_fwd": lambda: [(heads(5), heads(6), mask, None, *WHOLE) for mask in (None, matrix(1, 2, 5, 6))],
    "attention_weights_bwd": weights_bwd,
    "attention_varlen_fwd": lambda: [
        (packed(), packed(), packed(), CU_SEQLENS, CU_SEQLENS, None, SEED, 6, 6, 0.1, 0.3, 0.0, -1, 0, True)
    ],
    "attention_varlen_bwd": varlen_bwd,
    "attention_decode": lambda: [
        (matrix(2, 4, 1, 8), matrix(2, 2, 7, 8), matrix(2, 2, 7, 8), torch.tensor([7, 3]), None, 0.3, 0.0, -1, 0)
    ],
}


def test_every_operator_has_a_row():
    assert set(ROWS) == set(OPS)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", ROWS)
def test_operators_keep_torchs_rules(name, backend):
    if backend not in (*OPS[name].kernels, "torch"):
        pytest.skip(f"no {backend} kernel")
    for args in ROWS[name]():
        torch.library.opcheck(getattr(torch.ops.pyflash, name).default, (*args, backend))
