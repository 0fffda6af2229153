"""The CUDA C++ kernels of the recurrent layers, through the public modules, against float64 torch: on the host in several
orders of threads (docs/cuda-on-host.md), or on a GPU.

A block has 8 or 16 units of a gated cell, 16 or 32 of a plain one, and of all its gates in the backward 16.
"""

import pytest
import torch
from helpers import assert_error_within, backend_params, use

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

BACKENDS = backend_params("cuda")
pytestmark = pytest.mark.usefixtures("exact_float32")
BOTH = {"bidirectional": True}
RAGGED = (2, 0, 3, 1)
CASES = [
    *(Case(cell, "one block", steps=4) for cell in CELLS),
    *(Case(cell, "several blocks, both directions", steps=3, hidden=20, options=BOTH) for cell in CELLS),
    Case("RNN", "relu, no bias", steps=3, options={"nonlinearity": "relu", "bias": False}),
    Case("GRU", "no bias, no states", steps=3, options={"bias": False}, has_states=False),
    Case("LSTM", "blocks that are full", steps=3, hidden=32),
    *(Case(cell, "smallest", steps=1, batch=1, inputs=1, hidden=1) for cell in CELLS),
    Case("LSTM", "groups of sequences", steps=2, batch=19, options={"num_layers": 2}),
    Case("LSTM", "batch first, two layers", steps=3, options={"batch_first": True, "num_layers": 2, **BOTH}),
    Case("GRU", "batch first, unbatched", steps=3, layout="unbatched", options={"batch_first": True}),
    *(Case(cell, "unsorted", layout="unsorted", lengths=(2, 7, 1, 6), options=BOTH) for cell in CELLS),
    Case("GRU", "sorted", steps=3, hidden=20, layout="sorted", lengths=(3, 3, 2, 1), options=BOTH),
    *(Case(cell, "ragged", steps=3, layout="ragged", lengths=RAGGED, options=BOTH) for cell in CELLS),
    Case("LSTM", "ragged, batch first", 3, hidden=17, layout="ragged", lengths=RAGGED, options={"batch_first": True}),
    Case("LSTM", "one x for all rows", steps=3, strides="expanded"),
    Case("GRU", "features not adjacent", steps=3, strides="transposed"),
]


def check(case, dtype, backend):
    truth, theirs = truth_and_torch(case, dtype)
    with serving(backend):
        ours = results(case.module(dtype, ours=True), case, dtype)
    assert_error_within(ours, theirs, truth, *truth, floor_ulp=16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case, backend):
    check(case, torch.float32, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.why.startswith(("several", "ragged"))], ids=str)
def test_half_types(case, dtype, backend):
    check(case, dtype, backend)


@pytest.fixture
def a_device():
    """Sets the device that the host stands in for: its processors, and bytes of shared memory of a block."""
    if not backends.CUDA_ON_HOST or backends.MISSING["cuda"]:
        pytest.skip(backends.MISSING["cuda"] or "on a GPU")
    from pyflash import _cuda_host
    from pyflash.ops.recurrent import _cuda

    def set_device(processors, shared_bytes=227 << 10):
        _cuda_host.set_device(processors, shared_bytes)
        _cuda._workspace_bytes.cache_clear()

    yield set_device
    set_device(132)


# Bytes of shared memory of which a processor holds one block of a forward, two of a backward.
ONE_BLOCK = 27 << 10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case, processors",
    [
        (Case("LSTM", "tiles of a group", steps=3, batch=19, hidden=9, options=BOTH), 4),
        (Case("GRU", "directions one after the other", steps=3, batch=9, hidden=18, options=BOTH), 2),
        (Case("LSTM", "launches of a part of the batch", steps=2, batch=75, hidden=6), 1),
        (Case("RNN", "ragged tiles", 3, 11, 3, 18, BOTH, "ragged", (3, 1, 2, 0, 3, 1, 1, 2, 0, 0, 1)), 2),
        (Case("GRU", "packed tiles", 3, 11, 3, 6, {}, "unsorted", (3, 1, 2, 1, 3, 1, 1, 2, 1, 1, 1)), 1),
    ],
    ids=str,
)
def test_a_small_device(case, processors, backend, a_device):
    a_device(processors, ONE_BLOCK)
    check(case, torch.float32, backend)


def test_a_layer_that_does_not_fit_is_refused(a_device):
    a_device(2, ONE_BLOCK)
    module, x = nn.LSTM(5, 40), torch.randn(3, 2, 5)
    with serving(BACKENDS[0]), pytest.raises(NotImplementedError, match="those of 40 units of float32 are more"):
        module(x)
    with serving(BACKENDS[0]), pytest.raises(NotImplementedError, match="those of 40 units"):
        nn.GRUCell(5, 40)(x[0])
    assert "recurrent weights" in backends.OPERATIONS["gru"].notes["cuda"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[:1])
def test_weights_beyond_the_registers(backend):
    """What a thread's registers do not hold lies in shared memory."""
    check(Case("LSTM", "", steps=2, batch=2, inputs=3, hidden=516), torch.float32, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_tf32(cell, backend):
    """Operands have 10 bits of float32's 23, as those of torch's cuDNN have by default."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    case = Case(cell, "", steps=3, hidden=20, options=BOTH)
    truth, _ = truth_and_torch(case, torch.float32)
    with serving(backend):
        ours = results(case.module(torch.float32, ours=True), case, torch.float32)
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    with serving(backend):
        exact = results(case.module(torch.float32, ours=True), case, torch.float32)
    # a float16 has as many bits: torch's own error in it is what operands so rounded may cost
    theirs = tuple(t.float() for t in truth_and_torch(case, torch.float16)[1])
    assert_error_within(ours, theirs, truth, *truth, factor=1.0)
    assert any(not torch.equal(a, b) for a, b in zip(ours, exact))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["padded", "ragged", "batch first"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_gates_stored_or_computed_again(cell, layout, backend):
    case = Case(cell, "", steps=3, hidden=20, batch=3, options={"batch_first": layout == "batch first", **BOTH})
    lengths = torch.tensor([2, 0, 3]) if layout == "ragged" else None
    torch.testing.assert_close(*gradients_either_way(case, torch.float32, lengths, backend), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("save_gates", [True, False])
def test_what_lies_past_the_end_is_not_read(save_gates, backend):
    assert_padding_is_not_read(20, backend, save_gates=save_gates)


@pytest.mark.parametrize("backend", BACKENDS[:1])
@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives_are_torchs(cell, backend):
    """By the reference, whichever kernels computed the first ones."""
    case = Case(cell, "", steps=3, batch=2, options=BOTH)
    x, _ = case.inputs_of(torch.float32)
    found = []
    for ours, by in ((True, backend), (False, "torch")):
        module, own = case.module(torch.float32, ours=ours), leaf(x)
        with use(by):
            first = torch.autograd.grad(module(own)[0].square().sum(), [own, *module.parameters()], create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in first), [own, *module.parameters()]))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS[:1])
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_of_a_part(cell, backend):
    torch.testing.assert_close(*gradients_of_a_part(cell, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_cells_and_single_steps(cell, backend):
    layers, one = getattr(nn, cell)(5, 7, 2, batch_first=True), getattr(nn, f"{cell}Cell")(5, 7)
    x = torch.randn(3, 1, 5)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            with use("torch"):
                expected = layers(x), one(x[:, 0], one(x[:, 0]))
            with use(backend):
                torch.testing.assert_close((layers(x), one(x[:, 0], one(x[:, 0]))), expected)


@pytest.mark.parametrize("backend", BACKENDS[:1])
@pytest.mark.parametrize("has_lengths", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_no_hidden_units(cell, has_lengths, backend):
    x, h = leaf(torch.randn(3, 2, 5)), torch.zeros(2, 0)
    weights = [leaf(torch.randn(s)) for s in ((0, 5), (0, 0), (0,), (0,))]
    lengths = torch.tensor([3, 1]) if has_lengths else None
    with use(backend):
        y, state = getattr(PF, cell)(x, None, weights, lengths=lengths)
        grads = torch.autograd.grad(y.sum(), [x, *weights])
        step = getattr(PF, f"{cell}_cell")(x[0], (h, h) if cell == "lstm" else h, *weights)
    states = (state, step) if cell != "lstm" else (*state, *step)
    assert y.shape == (3, 2, 0) and all(s.shape[-2:] == (2, 0) for s in states)
    assert [g.shape for g in grads] == [x.shape, *(w.shape for w in weights)] and not grads[0].any()


@pytest.mark.parametrize("backend", BACKENDS[:1])
def test_nothing_but_empty_sequences(backend):
    case = Case("LSTM", "", steps=3, options=BOTH)
    x, states = case.inputs_of(torch.float32)
    module, lengths = case.module(torch.float32, ours=True), torch.zeros(4, dtype=torch.long)
    with use(backend):
        y, (h_n, c_n) = module(x, tuple(states), lengths=lengths)
    assert torch.equal(h_n, states[0]) and torch.equal(c_n, states[1]) and not y.any()


@pytest.mark.parametrize("backend", BACKENDS[:1])
@pytest.mark.parametrize("cell", CELLS)
def test_large_pre_activations_and_nan(cell, backend):
    """An exponential of them would overflow; a NaN of one sequence stays in it."""
    ours, theirs = getattr(nn, cell)(2, 20), getattr(torch.nn, cell)(2, 20)
    for p in ours.parameters():
        p.data.mul_(1e3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 2, 2) * 1e3
    x[1, 0, 0] = float("nan")
    with use(backend):
        y = ours(x)[0]
    torch.testing.assert_close(y, theirs(x)[0], equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS[:1])
def test_a_projection_is_refused_with_its_reason(backend):
    module, x = nn.LSTM(5, 6, proj_size=2), torch.randn(3, 2, 5)
    with use(backend), pytest.raises(NotImplementedError, match="proj_size"):
        module(x)
    assert "proj_size" in backends.OPERATIONS["lstm"].notes["cuda"]


@pytest.mark.parametrize("backend", BACKENDS[:1])
def test_a_result_does_not_depend_on_the_order_of_threads(backend):
    found = []
    for order in BACKENDS:
        torch.manual_seed(1)
        module, x = nn.LSTM(5, 20, bidirectional=True), torch.randn(3, 4, 5)
        with use(order):
            y = module(x)[0]
            found.append((y, *torch.autograd.grad(y.sum(), module.parameters())))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))
