"""torch.utils.flop_counter.FlopCounterMode counts for a replaced model what it counts for torch's."""

import copy
import subprocess
import sys

import pytest
import torch
from helpers import use
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import pyflash
import pyflash.functional as PF
from pyflash.ops.core.registry import OPS
from tests.nn.module_helpers import quiet

LAYER = {"dim_feedforward": 96, "dropout": 0.0, "batch_first": True}
MODELS = {  # class and arguments; shape of the input
    "mlp": (lambda: nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 5, bias=False)), (3, 7, 16)),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, **LAYER), 2), (3, 7, 32)),
    "LSTM": (lambda: nn.LSTM(12, 20, 2, bidirectional=True), (7, 3, 12)),
    "LSTM with projection": (lambda: nn.LSTM(12, 20, proj_size=8), (7, 3, 12)),
    "GRU": (lambda: nn.GRU(12, 20, bias=False, batch_first=True), (3, 7, 12)),
    "RNN": (lambda: nn.RNN(12, 20), (7, 3, 12)),
    "LSTMCell": (lambda: nn.LSTMCell(12, 20), (3, 12)),
}


def counted(function, *args):
    """(the result, what was counted)"""
    with FlopCounterMode(display=False) as counter:
        result = function(*args)
    return result, counter.get_total_flops()


def of_model(model, x):
    """Of the forward without gradients, of the forward with them, and of the backward."""
    with torch.no_grad():
        _, inference = counted(model, x)
    y, forward = counted(model, x)
    y = y[0] if isinstance(y, tuple) else y
    _, backward = counted(y.square().sum().backward)
    return inference, forward, backward


@pytest.mark.parametrize("needs_dx", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_replaced_model_counts_as_torchs(name, needs_dx):
    make, shape = MODELS[name]
    theirs = make()
    ours = pyflash.replace(copy.deepcopy(theirs))
    x = torch.randn(shape, requires_grad=needs_dx)
    # torch counts neither oneDNN's layers nor its own fused attention on a CPU.
    with use("torch"), torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), quiet():
        *forwards, backward = of_model(theirs, x)
    with use("cpu"), quiet():
        *ours_forwards, ours_backward = of_model(ours, x)
    assert ours_forwards == forwards and 0 not in forwards
    if name == "encoder":  # what is fused computes the scores again, as torch's formula for fused attention counts
        backward += 2 * 2 * 3 * 4 * 7 * 7 * 8
    assert ours_backward == backward


@pytest.mark.parametrize("heads", [4, 1])
def test_attention_counts_as_torchs_formula(heads):
    q = torch.randn(2, 4, 5, 8, requires_grad=True)
    k, v = torch.randn(2, heads, 9, 8), torch.randn(2, heads, 9, 16)
    with use("cpu"):
        out, forward = counted(lambda: PF.scaled_dot_product_attention(q, k, v, enable_gqa=True))
        _, backward = counted(out.sum().backward)
    assert forward == sdpa_flop_count(q.shape, k.shape, v.shape)
    assert backward == sdpa_backward_flop_count(out.shape, q.shape, k.shape, v.shape)


def test_packed_sequences_and_caches_count_what_they_hold():
    q = torch.randn(12, 4, 8, requires_grad=True)
    k, v = torch.randn(9, 4, 8), torch.randn(9, 4, 8)
    offsets_q, offsets_k = (torch.tensor(o, dtype=torch.int32) for o in ([0, 5, 12], [0, 1, 9]))
    lengths = torch.tensor([3, 9], dtype=torch.int32)
    caches = [torch.randn(2, 2, 20, 8) for _ in range(2)]
    with use("cpu"):
        out, forward = counted(lambda: PF.attention_varlen(q, k, v, offsets_q, offsets_k, 7, 8))
        _, backward = counted(out.sum().backward)
        _, decode = counted(lambda: PF.attention_decode(torch.randn(2, 4, 2, 8), *caches, lengths))
        table = torch.tensor([[2, 0], [1, 0]], dtype=torch.int32)  # of blocks of 5 keys
        pool = torch.randn(3, 2, 5, 8)
        _, paged = counted(lambda: PF.attention_decode(torch.randn(2, 4, 2, 8), pool, pool, lengths, block_table=table))
        _, weights = counted(lambda: PF.attention_weights(torch.randn(2, 4, 5, 8), torch.randn(2, 4, 9, 8)))
    sizes = [((1, 4, a, 8), (1, 4, b, 8), (1, 4, b, 8)) for a, b in ((5, 1), (7, 8))]
    assert forward == sum(sdpa_flop_count(*s) for s in sizes)
    assert backward == sum(sdpa_backward_flop_count(s[0], *s) for s in sizes)
    assert decode == paged == sum(sdpa_flop_count((1, 4, 2, 8), (1, 2, n, 8), (1, 2, n, 8)) for n in (3, 9))
    assert weights == 2 * 2 * 4 * 5 * 9 * 8


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3)])
def test_gates_that_are_computed_again_count_again(cell, gates):
    def backward(save_gates):
        params = [torch.randn(gates * 20, n, requires_grad=True) for n in (12, 20)]
        hx = (torch.zeros(1, 3, 20),) * 2 if cell == "lstm" else torch.zeros(1, 3, 20)
        y, _ = getattr(PF, cell)(torch.randn(7, 3, 12), hx, params, save_gates=save_gates)
        return counted(y.sum().backward)[1]

    with use("cpu"):
        assert backward(False) == backward(True) + 2 * 7 * 3 * gates * 20 * (12 + 20)


def test_families_of_products_have_formulas():
    """A family multiplies matrices with all of its operators or with none, but for a loss that computes its scores."""
    for op in OPS.values():
        family = op.kernels["cpu"].split(".")[2]
        multiplies = family in ("linear", "attention", "conv", "recurrent") or op.name.startswith(
            "linear_cross_entropy"
        )
        assert (op.flops is not None) == multiplies, op.name


@pytest.mark.parametrize(
    "imports", ["pyflash, torch.utils.flop_counter as c", "torch.utils.flop_counter as c, pyflash"]
)
@pytest.mark.slow
def test_the_order_of_imports_does_not_matter(imports):
    code = (
        f"import {imports}, torch; print(torch.ops.pyflash.matmul in c.flop_registry, c.__loader__.path == c.__file__)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() == ["True", "True"]
