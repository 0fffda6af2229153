"""The Triton kernels of the recurrent layers in the interpreter, through the public modules, against float64 torch.

There up to 16 units walk with the matrix held, up to 32 in one launch that re-reads it, more in a launch a step.
"""

import pytest
import torch
from helpers import assert_error_within

import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.recurrent.rnn_helpers import (
    CELLS,
    Case,
    assert_padding_is_not_read,
    gradients_either_way,
    gradients_of_a_part,
    leaf,
    results,
    serving,
    truth_and_torch,
)

if backends.MISSING["triton"] or not backends.INTERPRETING:
    pytest.skip("for the interpreter, on CPU tensors", allow_module_level=True)

pytestmark = pytest.mark.triton

BOTH = {"bidirectional": True}
HELD, FUSED, STEPPED = 6, 20, 40  # hidden units of each way
CASES = [
    *(Case(cell, "held", steps=5, hidden=HELD) for cell in CELLS),
    *(Case(cell, "fused", steps=3, hidden=FUSED, options=BOTH) for cell in CELLS),
    *(Case(cell, "stepped", steps=3, hidden=STEPPED, batch=3) for cell in CELLS),
    Case("RNN", "relu, no bias", steps=3, options={"nonlinearity": "relu", "bias": False}),
    Case("GRU", "no bias, no states", steps=3, options={"bias": False}, has_states=False),
    Case("LSTM", "stepped, no bias, both directions", 2, 2, 3, STEPPED, {"bias": False, **BOTH}),
    Case("LSTM", "blocks that are full", steps=2, hidden=16, options=BOTH),
    Case("GRU", "fused, blocks that are full", steps=2, hidden=32),
    Case("LSTM", "stepped, blocks that are full", steps=2, hidden=64, batch=2),
    Case("GRU", "stepped, sums in parts", steps=2, hidden=90, batch=2),
    *(Case(cell, "smallest", steps=1, batch=1, inputs=1, hidden=1) for cell in CELLS),
    Case("GRU", "two tiles of rows", steps=2, batch=19, hidden=HELD),
    Case("LSTM", "two tiles of rows, stepped", steps=2, batch=19, hidden=33),
    Case("LSTM", "batch first, two layers", steps=3, options={"batch_first": True, "num_layers": 2, **BOTH}),
    Case("GRU", "batch first, unbatched", steps=3, layout="unbatched", options={"batch_first": True}),
    Case("LSTM", "unsorted", layout="unsorted", lengths=(2, 7, 1, 6), options=BOTH),
    Case("GRU", "sorted, stepped", steps=3, hidden=STEPPED, layout="sorted", lengths=(3, 3, 2, 1), options=BOTH),
    Case("RNN", "unsorted, fused", steps=3, hidden=FUSED, layout="unsorted", lengths=(1, 3, 2, 2), options=BOTH),
    Case("LSTM", "ragged, stepped", steps=3, hidden=33, layout="ragged", lengths=(2, 0, 3, 1), options=BOTH),
    Case("GRU", "ragged", layout="ragged", lengths=(0, 7, 0, 2), options={"batch_first": True, **BOTH}),
    Case("RNN", "ragged, fused", steps=3, hidden=FUSED, layout="ragged", lengths=(1, 3, 0, 2), options=BOTH),
    Case("LSTM", "one x for all rows", steps=3, strides="expanded"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case):
    check(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.why in ("held", "stepped", "ragged")], ids=str)
def test_half_types(case, dtype):
    check(case, dtype)


def check(case, dtype):
    truth, theirs = truth_and_torch(case, dtype)
    with serving("triton"):
        ours = results(case.module(dtype, ours=True), case, dtype)
    assert_error_within(ours, theirs, truth, *truth, floor_ulp=16)


@pytest.mark.parametrize("layout", ["padded", "ragged", "batch first"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_gates_stored_or_computed_again(cell, layout):
    case = Case(cell, "", steps=3, hidden=FUSED, batch=3, options={"batch_first": layout == "batch first", **BOTH})
    lengths = torch.tensor([2, 0, 3]) if layout == "ragged" else None
    torch.testing.assert_close(*gradients_either_way(case, torch.float32, lengths, "triton"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden", [HELD, 33])
def test_what_lies_past_the_end_is_not_read(hidden):
    assert_padding_is_not_read(hidden, "triton")


def test_nothing_but_empty_sequences():
    case = Case("LSTM", "", steps=3, options=BOTH)
    x, states = case.inputs_of(torch.float32)
    with serving("triton"):
        y, (h_n, c_n) = case.module(torch.float32, ours=True)(
            x, tuple(states), lengths=torch.zeros(4, dtype=torch.long)
        )
    assert torch.equal(h_n, states[0]) and torch.equal(c_n, states[1]) and not y.any()


@pytest.mark.parametrize("has_lengths", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_no_hidden_units(cell, has_lengths):
    """A function takes weights of none, as torch's GRU and RNN do (its LSTM's oneDNN has no such product)."""
    x, h = leaf(torch.randn(3, 2, 5)), torch.zeros(2, 0)
    weights = [leaf(torch.randn(s)) for s in ((0, 5), (0, 0), (0,), (0,))]
    lengths = torch.tensor([3, 1]) if has_lengths else None
    with serving("triton"):
        y, state = getattr(PF, cell)(x, None, weights, lengths=lengths)
        grads = torch.autograd.grad(y.sum(), [x, *weights])
        step = getattr(PF, f"{cell}_cell")(x[0], (h, h) if cell == "lstm" else h, *weights)
    states = (state, step) if cell != "lstm" else (*state, *step)
    theirs = torch._VF.gru(
        x, torch.zeros(1, 2, 0), [w.new_zeros(w.shape) for w in weights], True, 1, 0.0, False, False, False
    )
    assert y.shape == theirs[0].shape and all(s.shape[-2:] == (2, 0) for s in states)
    assert [g.shape for g in grads] == [x.shape, *(w.shape for w in weights)] and not grads[0].any()


@pytest.mark.parametrize("cell", CELLS)
def test_gradient_of_a_part(cell):
    torch.testing.assert_close(*gradients_of_a_part(cell, "triton"))


@pytest.mark.parametrize("cell", CELLS)
def test_cells(cell):
    torch.manual_seed(0)
    ours, theirs = getattr(nn, cell + "Cell")(5, 7), getattr(torch.nn, cell + "Cell")(5, 7)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5)
    with serving("triton"):
        h = ours(x, ours(x))
    torch.testing.assert_close(h, theirs(x, theirs(x)))


@pytest.mark.parametrize("cell", CELLS)
def test_one_step_without_gradients(cell):
    """A stream's: the CPU has an operator of its own for it, Triton has none."""
    layers, one = getattr(nn, cell)(5, HELD, 2, batch_first=True), getattr(nn, f"{cell}Cell")(5, HELD)
    x = torch.randn(3, 1, 5)
    with torch.no_grad():
        with serving("torch"):
            expected = layers(x), one(x[:, 0])
        with serving("triton"):
            torch.testing.assert_close((layers(x), one(x[:, 0])), expected)


def test_large_pre_activations_saturate():
    """An exponential of them would overflow."""
    ours, theirs = nn.LSTM(2, 3), torch.nn.LSTM(2, 3)
    for p in ours.parameters():
        p.data.mul_(1e4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 2, 2) * 1e3
    with serving("triton"):
        y = ours(x)[0]
    torch.testing.assert_close(y, theirs(x)[0])


def test_a_projection_is_refused_with_its_reason():
    module = nn.LSTM(5, 6, proj_size=2)
    with serving("triton"), pytest.raises(NotImplementedError, match="proj_size"):
        module(torch.randn(3, 2, 5))
    assert "proj_size" in backends.OPERATIONS["lstm"].notes["triton"]
