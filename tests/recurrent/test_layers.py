"""RNN, LSTM and GRU against torch in float64: every cell, layout and dtype, gradients to second order."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_error_within

from tests.recurrent.rnn_helpers import (
    BACKENDS,
    CELLS,
    CPU,
    Case,
    call,
    gradients_either_way,
    leaf,
    results,
    serving,
    truth_and_torch,
)

CASES = [
    *(Case(cell, "plain") for cell in CELLS),
    Case("RNN", "relu", options={"nonlinearity": "relu"}),
    *(Case(cell, "two layers, both directions", options={"num_layers": 2, "bidirectional": True}) for cell in CELLS),
    *(Case(cell, "no bias", options={"bias": False}, has_states=False) for cell in CELLS),
    Case("LSTM", "projection", options={"proj_size": 3}),
    Case("LSTM", "projection, no bias", options={"proj_size": 1, "bias": False, "num_layers": 3}),
    Case("LSTM", "projection, both directions", options={"proj_size": 4, "bidirectional": True, "num_layers": 2}),
    *(Case(cell, "batch first", options={"batch_first": True, "num_layers": 2}) for cell in CELLS),
    *(Case(cell, "unbatched", layout="unbatched") for cell in CELLS),
    Case("GRU", "unbatched, batch first", layout="unbatched", options={"batch_first": True, "bidirectional": True}),
    *(Case(cell, "sorted", layout="sorted", lengths=(7, 5, 5, 1)) for cell in CELLS),
    *(
        Case(cell, "unsorted", layout="unsorted", lengths=(2, 7, 1, 6), options={"num_layers": 2, "bidirectional": True})
        for cell in CELLS
    ),
    Case("LSTM", "unsorted projection", layout="unsorted", lengths=(2, 7, 1, 6), options={"proj_size": 2}),
    Case("GRU", "unsorted, batch first", layout="unsorted", lengths=(3, 7, 3, 2), options={"batch_first": True}),
    *(Case(cell, "ragged", layout="ragged", lengths=(3, 0, 6, 1)) for cell in CELLS),
    *(
        Case(
            cell, "ragged in both directions", layout="ragged", lengths=(0, 7, 0, 2),
            options={"num_layers": 2, "bidirectional": True, "batch_first": True},
        )
        for cell in CELLS
    ),
    Case("LSTM", "ragged projection", layout="ragged", lengths=(4, 7, 0, 7), options={"proj_size": 2}),
    *(Case(cell, "smallest", steps=1, batch=1, inputs=1, hidden=1) for cell in CELLS),
    *(Case(cell, "17 units, 33 inputs", steps=3, batch=3, inputs=33, hidden=17) for cell in CELLS),
    *(Case(cell, "257 units", steps=2, batch=3, inputs=7, hidden=257) for cell in CELLS),
    *(Case(cell, "19 rows", steps=3, batch=19, inputs=16, hidden=16) for cell in CELLS),
    *(Case(cell, "513 steps", steps=513, batch=1, inputs=3, hidden=5) for cell in CELLS),
    *(Case(cell, "one x for all rows", strides="expanded") for cell in CELLS),
    Case("LSTM", "features not adjacent", strides="transposed"),
    Case("GRU", "features not adjacent, batch first", strides="transposed", options={"batch_first": True}),
]  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def worth_running(case, dtype):
    """Half types differ from float32 in what is loaded and stored only."""
    if dtype in (torch.float32, torch.float64):
        return True
    # relu and a long chain of steps tell more about rounding in torch than about us
    return case.steps < 100 and "relu" not in case.why


@pytest.mark.parametrize("backend", [*BACKENDS, *CPU])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case, dtype, backend):
    if not worth_running(case, dtype):
        pytest.skip("told by float32")
    truth, theirs = truth_and_torch(case, dtype)
    with serving(backend):
        ours = results(case.module(dtype, ours=True), case, dtype)
    assert_error_within(ours, theirs, truth, *truth, floor_ulp=16)


@pytest.mark.parametrize("backend", [*BACKENDS, *CPU])
def test_nothing_but_empty_sequences(backend):
    case = Case("LSTM", "", options={"bidirectional": True, "num_layers": 2})
    module = case.module(torch.float32, ours=True)
    x, states = case.inputs_of(torch.float32)
    leaves = [leaf(x), *map(leaf, states)]
    with serving(backend):
        y, (h_n, c_n) = module(leaves[0], tuple(leaves[1:]), lengths=torch.zeros(4, dtype=torch.int32))
        grads = torch.autograd.grad((y.sum() + h_n.sum() + 2 * c_n.sum()), [*leaves, *module.parameters()])
    assert torch.equal(h_n, states[0]) and torch.equal(c_n, states[1]) and not y.any()
    assert bool((grads[1] == 1).all()) and bool((grads[2] == 2).all())
    assert not any(g.any() for g in (grads[0], *grads[3:]))


SECOND = [
    *(
        Case(cell, "both directions", steps=3, batch=2, inputs=2, hidden=3, options={"bidirectional": True})
        for cell in CELLS
    ),
    Case("LSTM", "projection, packed", 3, 3, 2, 3, {"proj_size": 2}, "unsorted", (1, 3, 2)),
    Case("GRU", "ragged", 3, 3, 2, 2, {"bidirectional": True}, "ragged", (2, 0, 3)),
]


@pytest.mark.parametrize("backend", ["reference", *CPU[-1:]])
@pytest.mark.parametrize("case", SECOND, ids=str)
def test_first_and_second_derivatives(case, backend):
    module = case.module(torch.float64, ours=True)
    x, states = case.inputs_of(torch.float64)
    names, params = zip(*module.named_parameters())

    def function(x, *rest):
        weights = dict(zip(names, rest[len(states) :]))
        with torch.nn.utils.stateless._reparametrize_module(module, weights):
            return tuple(call(module, case, x, list(rest[: len(states)])))

    inputs = [leaf(t) for t in (x, *states, *params)]
    with serving(backend):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", *CPU[-1:]])
def test_all_cell_states(backend):
    case = Case("LSTM", "", options={"num_layers": 2, "bidirectional": True})
    module = case.module(torch.float64, ours=True)
    x, states = case.inputs_of(torch.float64)
    x, states = leaf(x), [leaf(s) for s in states]
    with serving(backend):
        _, (_, c_n), cells = module(x, tuple(states), return_cells=True)
        assert cells.shape == (4, 7, 4, 6)
        torch.testing.assert_close(torch.stack([cells[0, -1], cells[1, 0], cells[2, -1], cells[3, 0]]), c_n)
        for t in (1, 4):  # c after t steps is the last one of a sequence of t steps
            shorter = module(x[:t], tuple(states))[1][1]
            torch.testing.assert_close(cells[0, t - 1], shorter[0])
        weight = torch.randn_like(cells)

        def total(x, h_0, c_0):
            y, _, cells = module(x, (h_0, c_0), return_cells=True)
            return (cells * weight).sum() + y.sum()

        assert torch.autograd.gradcheck(total, (x, *states), fast_mode=True)
        assert torch.autograd.gradgradcheck(total, (x, *states), fast_mode=True)
        first = Case("LSTM", "", options={"batch_first": True}).module(torch.float64, ours=True)
        assert first(x, return_cells=True)[2].shape == (1, 7, 4, 6)
        assert first(x[0], return_cells=True)[2].shape == (1, 4, 6)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, [7, 3, 3, 1])
        assert module(packed, return_cells=True)[2].shape == (4, 14, 6)


@pytest.mark.parametrize("backend", ["reference", *CPU])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("layout", ["padded", "ragged"])
def test_gates_stored_or_computed_again(cell, layout, backend):
    case = Case(cell, "", steps=9, hidden=20, options={"bidirectional": True, "num_layers": 2})
    lengths = torch.tensor([3, 0, 9, 5]) if layout == "ragged" else None
    torch.testing.assert_close(*gradients_either_way(case, torch.float64, lengths, backend))


@pytest.mark.parametrize("backend", ["reference", *CPU[-1:]])
@pytest.mark.parametrize("cell", CELLS)
def test_backward_in_evaluation_and_twice(cell, backend):
    case = Case(cell, "", options={"num_layers": 2, "dropout": 0.5})
    module = case.module(torch.float32, ours=True).eval()
    x = leaf(case.inputs_of(torch.float32)[0])
    with serving(backend):
        y, _ = module(x)
        first = torch.autograd.grad(y.sum(), [x, *module.parameters()], retain_graph=True)
        again = torch.autograd.grad(y.sum(), [x, *module.parameters()])
        fresh = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
    for a, b, c in zip(first, again, fresh):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("backend", ["reference", *CPU[-1:]])
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_of_a_part(cell, backend):
    """Only one of the outputs is used, and only some of the inputs want a gradient."""
    case = Case(cell, "", options={"bidirectional": True})
    ours, theirs = case.module(torch.float64, ours=True), case.module(torch.float64)
    x, _ = case.inputs_of(torch.float64)
    for module in (ours, theirs):
        module.weight_hh_l0.requires_grad_(False)
        module.bias_ih_l0_reverse.requires_grad_(False)
    grads = []
    for module in (ours, theirs):
        with serving(backend):
            h_n = module(x)[1]
            h_n = h_n[-1] if cell == "LSTM" else h_n
            h_n[1].sum().backward()
        grads.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*([torch.zeros(()) if g is None else g for g in side] for side in grads))
