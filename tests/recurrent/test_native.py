"""The recurrent kernels of the CPU core: packed weights, threads, what only they do. Their numbers: test_layers.py."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from helpers import backend_params, relative_error, use
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import pyflash
import pyflash.functional as PF
import pyflash.nn
from pyflash.auto import recurrent as auto
from pyflash.ops.core import registry as _registry
from pyflash.ops.core.registry import Op
from pyflash.ops.recurrent import layers as recurrent
from pyflash.ops.recurrent import stream as rnn_inference
from tests.linear.test_linear_cache import MUTATIONS, cache  # noqa: F401  a fixture

pytest.importorskip("pyflash._cpu")

LAYERS = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU, "RNN": torch.nn.RNN}


def close(ours, theirs):
    for one, other in zip(torch.utils._pytree.tree_leaves(ours), torch.utils._pytree.tree_leaves(theirs)):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_gates_of_each_cell_are_one_fact():
    """csrc/common/recurrent.h and auto/recurrent.py."""
    assert pyflash._cpu.GATES == auto.GATES


# ---- packed weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_a_weight_without_a_version_is_packed_in_every_call(steps, cache):  # noqa: F811
    x, h = torch.randn(steps, 2, 5), torch.randn(1, 2, 7)
    weights = [torch.randn(21, 5), torch.randn(21, 7)]
    with torch.inference_mode():
        weights[1] = weights[1].clone()  # one of them is enough
    for _ in range(2):
        with use("cpu"), torch.no_grad():
            ours = PF.gru(x, h, weights)
        with torch.inference_mode():
            close(ours, torch._VF.gru(x, h, weights, False, 1, 0.0, False, False, False))
            weights[1][0, 0] += 1
    assert not len(cache)


# torch.utils.swap_tensors refuses parameters of recurrent modules, which hold weak references to them.
@pytest.mark.parametrize("mutation", [name for name in MUTATIONS if name not in ("one element", "swap_tensors")])
@pytest.mark.parametrize("name", LAYERS)
def test_a_changed_weight_is_seen_between_steps(name, mutation, cache):  # noqa: F811
    layer = LAYERS[name](20, 40)
    ours, x, hx = copy.deepcopy(layer), torch.randn(1, 1, 20), None
    pyflash.replace(ours)
    for parameter in ("weight_ih_l0", "weight_hh_l0", "bias_hh_l0"):
        with use("cpu"), torch.no_grad():
            for _ in range(2):
                _, hx = ours(x, hx)
        MUTATIONS[mutation](getattr(ours, parameter))
        layer.load_state_dict(ours.state_dict())
        with use("cpu"), torch.no_grad():
            close(ours(x, hx), layer(x, hx))


def test_the_cache_keeps_what_lives_and_only_without_gradients(cache):  # noqa: F811
    layer, x = pyflash.nn.LSTM(20, 40, num_layers=2), torch.randn(3, 2, 20)
    with use("cpu"):
        layer(x)
        assert len(cache) == 0
        with torch.no_grad():
            layer(x)
            layer(x[:1])
        assert len(cache) == 2
        with torch.inference_mode():
            pyflash.nn.LSTM(20, 40)(x)
    assert len(cache) == 2
    del layer
    assert len(cache) == 0 and cache.bytes == 0


# ---- threads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, hidden", [(1, 300), (5, 257), (40, 131)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_any_number_of_threads_in_bfloat16(name, batch, hidden, threads):
    """Odd numbers of units and inputs: their last pair has one term. The tiles, and so the order of sums, differ."""
    layer = pyflash.replace(LAYERS[name](33, hidden, bidirectional=batch == 5).bfloat16())
    x, results = torch.randn(9, batch, 33).bfloat16().requires_grad_(), []
    for count in (1, 2, 3):
        threads(count)
        with use("cpu"):
            for _ in range(2):
                y, _ = layer(x)
                results.append([y, *torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])])
        assert all(map(torch.equal, *results[-2:]))  # the same from run to run
    for others in results:
        for one, first in zip(others, results[0]):
            assert relative_error(one.double(), first.double()) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("batch, hidden", [(1, 300), (5, 256), (40, 130)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_any_number_of_threads(name, batch, hidden, count, threads):
    """More than there are processors, too: at a barrier they give theirs up."""
    layer, x = LAYERS[name](33, hidden, bidirectional=batch == 5), torch.randn(9, batch, 33)
    ours = pyflash.replace(copy.deepcopy(layer))
    threads(count)
    results = []
    with use("cpu"):
        for _ in range(2):
            y, _ = ours(x)
            y.sum().backward()
            results.append([y.detach(), *(p.grad.clone() for p in ours.parameters())])
            ours.zero_grad()
    y, _ = layer(x)
    y.sum().backward()
    assert all(map(torch.equal, *results))  # the same from run to run
    torch.testing.assert_close(results[0][0], y, atol=1e-5, rtol=1e-5)
    for ours_grad, p in zip(results[0][1:], layer.parameters()):
        torch.testing.assert_close(ours_grad, p.grad, atol=1e-4, rtol=1e-4)


def test_a_forked_child_computes(threads):
    threads(2)
    layer, x = pyflash.nn.GRU(64, 256), torch.randn(20, 1, 64)
    with use("cpu"), torch.no_grad():
        expected = layer(x)[0]
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            same = torch.allclose(layer(x)[0], expected, atol=1e-5)
            os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("trained", [("weight_ih",), ("weight_hh",), ("weight_ih", "weight_hh"), ("bias_hh",)], ids=str)
@pytest.mark.parametrize("inputs", [5, 16, 70])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_some_weights(name, inputs, trained):
    """Those of w_ih and w_hh are one product, whatever part of it is wanted and wherever x ends beside h."""
    layer, x = LAYERS[name](inputs, 20, bidirectional=True), torch.randn(6, 3, inputs)
    for parameter, p in layer.named_parameters():
        p.requires_grad_(parameter.startswith(trained))
    ours = pyflash.replace(copy.deepcopy(layer))
    with use("cpu"):
        ours(x)[0].square().sum().backward()
    layer(x)[0].square().sum().backward()
    for p, q in zip(ours.parameters(), layer.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=2e-5, rtol=2e-5)


# ---- memory -------------------------------------------------------------------------------------------------------


def test_large_memory_comes_in_large_pages(monkeypatch):
    """The limit is lowered here: of a training step the saved gates and cells, the output, the workspace and dx."""
    from pyflash.ops.core import native, workspace

    layer, x, asked = pyflash.nn.LSTM(16, 32), torch.randn(40, 8, 16, requires_grad=True), []

    def gradients():
        return torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])

    with use("cpu"):
        expected = gradients()
        advise = native._cpu.prefer_large_pages
        monkeypatch.setattr(Op, "paranoid", False)  # which makes the outputs anew
        monkeypatch.setattr(_registry, "LARGE_BYTES", 40 * 8 * 16 * 4)
        monkeypatch.setattr(workspace, "_KEPT_BYTES", 40 * 8 * 16 * 4)
        monkeypatch.setattr(native._cpu, "prefer_large_pages", lambda *place: asked.append(place) or advise(*place))
        found = gradients()
    assert all(map(torch.equal, expected, found))
    assert {40 * 8 * n * 4 for n in (16, 32, 128)} <= {size for _, size in asked}
    for size in (0, 1, 4095, 4096, 12345):
        advise(x.data_ptr(), size)  # parts of pages are left out
    assert all(map(torch.equal, expected, found))


# ---- values no other test reaches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps, rows", [([1, 2], None), ([3, 2], None), ([2, 1], [0, 0]), ([2, 1], [0, 5])], ids=str)
def test_steps_and_rows_are_checked_where_memory_is_reached(steps, rows):
    x, h = torch.randn(2, 2, 3), torch.zeros(1, 2, 4)
    weights = [torch.randn(12, 3), torch.randn(12, 4)]
    steps, rows = torch.tensor(steps), None if rows is None else torch.tensor(rows)
    with pytest.raises(RuntimeError, match="descending"):
        torch.ops.pyflash.rnn_fwd(x, h, None, weights, rows, steps, "gru", False, False, False, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inputs, hidden", [(4, 20), (5, 21)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_large_and_broken_inputs_propagate_as_in_torch(name, inputs, hidden, dtype):
    layer, x = LAYERS[name](inputs, hidden).to(dtype), torch.randn(3, 5, inputs).to(dtype)
    x[0, 0, 0], x[0, 1, 0], x[1, 2, 1], x[0, 3, -1] = float("nan"), float("inf"), 1e30, float("inf")
    ours = pyflash.replace(copy.deepcopy(layer))
    with use("cpu"), torch.no_grad():
        y, theirs = ours(x)[0], layer(x)[0]
    if dtype == torch.float32:
        torch.testing.assert_close(y, theirs, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert torch.equal(y.isnan(), theirs.isnan())


# ---- activations of gates -----------------------------------------------------------------------------------------


EXTREMES = [0.0, -0.0, 1e-42, -1e-30, 3e-8, 1e-4, 0.3465, -0.3466, 9.0, -9.1, 43.0, 87.5, -88.0, -103.0, 1e5, -3e38]


@pytest.mark.parametrize("backend", backend_params("cpu"))
def test_gates_at_every_size_of_argument(backend):
    """A plain layer of one unit is tanh; a GRU whose n is 0 and whose h is 1 gives its z, a sigmoid."""
    x = torch.cat([torch.tensor(EXTREMES), torch.logspace(-8, 2, 4000), -torch.logspace(-8, 2, 4000)])
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    with use(backend), torch.no_grad():
        tanh = PF.rnn(x.view(1, -1, 1), None, [one, zero])[0].flatten()
        weights = [torch.tensor([[0.0], [1.0], [0.0]]), torch.zeros(3, 1)]
        sigmoid = PF.gru(x.view(1, -1, 1), torch.ones(1, len(x), 1), weights)[0].flatten()
        odd = torch.tensor([float("inf"), -float("inf"), float("nan")])
        found = PF.rnn(odd.view(1, -1, 1), None, [one, zero])[0].flatten()
    for ours, truth in ((tanh, x.double().tanh()), (sigmoid, x.double().sigmoid())):
        assert ours.abs().max() <= 1
        # 3 ulp; below e^-87 a sigmoid is as good as zero
        assert ((ours - truth).abs() <= 3 * 2**-23 * truth.abs() + 2e-38).all()
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, float("nan")]), equal_nan=True, rtol=0, atol=0)


# ---- single steps -------------------------------------------------------------------------------------------------

STEPS = {  # what the short way takes, and what it leaves to the long one
    "usual": lambda x, h, w: (x, h, w),
    "strided input": lambda x, h, w: (x.t().contiguous().t(), h, w),
    "strided state": lambda x, h, w: (x, h.t().contiguous().t(), w),
    "transposed weight": lambda x, h, w: (x, h, [w[0].t().contiguous().t(), *w[1:]]),
    "negative bit": lambda x, h, w: (torch.complex(x, -x).conj().imag, h, w),
    "no bias": lambda x, h, w: (x, h, [*w[:2], None, None]),
    "float64": lambda x, h, w: (x.double(), h.double(), [t.double() for t in w]),
}


@pytest.mark.parametrize("wish", ["cpu", "auto"])
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("cell, gates", [("lstm", 4), ("gru", 3), ("rnn_tanh", 1)])
def test_a_step_without_gradients_is_torchs(cell, gates, kind, wish):
    w = [torch.randn(gates * 7, 5), torch.randn(gates * 7, 7), torch.randn(gates * 7), torch.randn(gates * 7)]
    x, h, w = STEPS[kind](torch.randn(3, 5), torch.randn(3, 7), w)
    hx = (h, h * 2) if cell == "lstm" else h
    with use(wish), torch.no_grad():
        close(
            getattr(PF, cell.removesuffix("_tanh") + "_cell")(x, hx, *w), getattr(torch._VF, cell + "_cell")(x, hx, *w)
        )


@pytest.mark.parametrize("wish", ["cpu", "auto"])
@pytest.mark.parametrize("wrong", ["x", "h", "batch", "bias", "dtype"])
def test_a_wrong_step_without_gradients_raises(wrong, wish):
    w = [torch.randn(21, 5), torch.randn(21, 7), torch.randn(20 if wrong == "bias" else 21), torch.randn(21)]
    x = torch.randn(3, 6 if wrong == "x" else 5, dtype=torch.float64 if wrong == "dtype" else torch.float32)
    h = torch.randn(2 if wrong == "batch" else 3, 8 if wrong == "h" else 7)
    with use(wish), torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
        PF.gru_cell(x, h, *w)


SHORT = {  # does the short way take it?
    "usual": (lambda x, h, w: (x, h, w, {}), True),
    "zero states": (lambda x, h, w: (x, None, w, {}), True),
    "no bias": (lambda x, h, w: (x, h, [t for t in w if t.dim() == 2], {}), True),
    "float64": (lambda x, h, w: (x.double(), h.double(), [t.double() for t in w], {}), True),
    "batch first": (lambda x, h, w: (x.transpose(0, 1).contiguous(), h, w, {"batch_first": True}), True),
    "one layer": (lambda x, h, w: (x, h[:1], w[:4], {}), True),
    "unbatched": (lambda x, h, w: (x[:, 0], h[:, 0], w, {}), False),
    "strided input": (lambda x, h, w: (x.transpose(1, 2).contiguous().transpose(1, 2), h, w, {}), False),
    "strided state": (lambda x, h, w: (x, h.transpose(1, 2).contiguous().transpose(1, 2), w, {}), False),
    "negative bit": (lambda x, h, w: (torch.complex(x, -x).conj().imag, h, w, {}), False),
    "inference weight": (lambda x, h, w: (x, h, [torch.inference_mode()(w[0].clone)(), *w[1:]], {}), True),
}


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("cell, gates", [("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)])
def test_layers_without_gradients_are_torchs(cell, gates, steps, kind, cache, monkeypatch):  # noqa: F811
    make, is_short = SHORT[kind]
    rows = gates * 7
    w = [torch.randn(rows, n) if n else torch.randn(rows) for n in (5, 7, 0, 0, 7, 7, 0, 0, 7, 7, 0, 0)]
    x, h, w, options = make(torch.randn(steps, 3, 5), torch.randn(3, 3, 7), w)
    taken = []
    usual = recurrent._usual
    monkeypatch.setattr(recurrent, "_usual", lambda *args: taken.append(usual(*args)) or taken[-1])
    torch_h = torch.zeros(3, 3, 7) if h is None else h
    torch_x = x if x.dim() == 3 else x[:, None]
    torch_h = torch_h if x.dim() == 3 else torch_h[:, None]
    wide = [t.double() for t in (torch_x, torch_h, *w)]
    hx = (wide[1], wide[1] * 2) if cell == "lstm" else wide[1]
    layers, is_first = wide[1].shape[0], options.get("batch_first", False)
    truth = getattr(torch._VF, cell)(wide[0], hx, wide[2:], "no bias" != kind, layers, 0.0, False, False, is_first)
    if cell == "lstm":
        h = h if h is None else (h, h * 2)
    function = getattr(PF, cell.split("_")[0])
    if cell.startswith("rnn"):
        options["nonlinearity"] = cell.removeprefix("rnn_")
    with use("cpu"), torch.no_grad():
        for _ in range(2):
            y, state = function(x, h, w, **options)
            found = [y, *state] if cell == "lstm" else [y, state]
            for ours, theirs in zip(found, truth, strict=True):
                theirs = theirs if x.dim() == 3 else theirs[:, 0]
                torch.testing.assert_close(ours, theirs.to(ours.dtype), atol=4e-6, rtol=4e-6)
    assert all((one is not None and one[1] is recurrent.infer_layers) == is_short for one in taken) and taken


def test_weights_without_a_version_where_others_lay(cache):  # noqa: F811
    x = torch.randn(1, 3, 5)
    with torch.inference_mode():
        unversioned = [torch.randn(21, 5), torch.randn(21, 7)]
    versioned = [torch.from_numpy(t.numpy()) for t in unversioned]
    for weights in (versioned, unversioned, versioned):
        with use("cpu"), torch.no_grad():
            close(
                PF.gru(x, None, weights),
                torch._VF.gru(x, torch.zeros(1, 3, 7), weights, False, 1, 0.0, False, False, False),
            )


def test_a_narrower_layer_in_the_same_memory_has_its_own_panels(cache):  # noqa: F811
    w, x = [torch.randn(21, 5), torch.randn(21 * 7), torch.randn(21), torch.randn(21)], torch.randn(2, 3, 5)
    for hidden in (7, 4, 7, 2):
        rows = 3 * hidden
        own = [w[0][:rows], w[1][: rows * hidden].view(rows, hidden), w[2][:rows], w[3][:rows]]
        with use("cpu"), torch.no_grad():
            ours = PF.gru(x, None, own)
        close(ours, torch._VF.gru(x, torch.zeros(1, 3, hidden), own, True, 1, 0.0, False, False, False))


SEEN = {  # what has to see more of a call than its values: the short way is not for it
    "gradients": torch.enable_grad,
    "the profiler": torch.profiler.profile,
    "a dispatch mode": lambda: FlopCounterMode(display=False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "forward mode": forward_ad.dual_level,
    "the torch backend": lambda: use("torch"),
}


@pytest.mark.parametrize("who", SEEN)
def test_what_is_looked_at_is_not_short(who):
    cell, layer, x = pyflash.nn.GRUCell(5, 7), pyflash.nn.GRU(5, 7), torch.randn(1, 2, 5)
    h, weights = torch.randn(2, 7), [p for _, p in cell.named_parameters()]

    def is_short():
        found = recurrent._usual("gru", "gru", x, [h[None]], weights, False, False, False)
        return found is not None and found[1] is recurrent.infer_layers

    with use("cpu"), torch.no_grad():
        assert rnn_inference.infer_cell("gru_cell", "gru", x[0], h, None, *weights) is not None
        assert is_short()
        with SEEN[who]():
            assert rnn_inference.infer_cell("gru_cell", "gru", x[0], h, None, *weights) is None
            assert not is_short()
            cell(x[0], h), layer(x, h[None])


WRONG = {
    "features": lambda x, h, w: (x[..., :4], h, w),
    "batch": lambda x, h, w: (x, h[:, :2], w),
    "hidden": lambda x, h, w: (x, h[..., :6], w),
    "layers": lambda x, h, w: (x, torch.cat([h, h]), w),
    "dtype": lambda x, h, w: (x.double(), h, w),
    "dtype of state": lambda x, h, w: (x, h.double(), w),
    "bias": lambda x, h, w: (x, h, [*w[:3], w[3][:-1]]),
    "weights": lambda x, h, w: (x, h, w[:3]),
    "no memory": lambda x, h, w: (x, h, [w[0], freed(w[1]), *w[2:]]),
    "no memory of x": lambda x, h, w: (freed(x), h, w),
}


def freed(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_layers_without_gradients_raise(wrong, cache):  # noqa: F811
    w = [torch.randn(21, 5), torch.randn(21, 7), torch.randn(21), torch.randn(21)]
    x, h, w = WRONG[wrong](torch.randn(1, 3, 5), torch.randn(1, 3, 7), w)
    with use("cpu"), torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
        PF.gru(x, h, w)


REPARAMETRIZED = {
    "parametrize": lambda m, name: torch.nn.utils.parametrize.register_parametrization(m, name, torch.nn.Tanh()),
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("how", REPARAMETRIZED)
def test_a_reparametrized_weight_is_computed_for_every_step(how, cache):  # noqa: F811
    ours, name, x = pyflash.nn.GRUCell(5, 7).eval(), "weight_hh", torch.randn(2, 5)
    theirs = torch.nn.GRUCell(5, 7).eval()
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(1)
    REPARAMETRIZED[how](ours, name)
    torch.manual_seed(1)
    REPARAMETRIZED[how](theirs, name)
    for _ in range(3):
        with use("cpu"), torch.no_grad():
            close(ours(x, torch.ones(2, 7)), theirs(x, torch.ones(2, 7)))
        for module in (ours, theirs):
            for p in module.parameters():
                p.data.mul_(1.25)
