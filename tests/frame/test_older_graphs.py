"""torch.jit, torch.fx and ONNX, graphs that hold torch's operators only: a replaced model gives them what torch.nn's gives."""

import copy
import warnings

import pytest
import torch
from helpers import use
from torch import nn

import pyflash
from pyflash.ops.core import backends


class Recurrent(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        y, _ = self.module(x)
        return y


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.MultiheadAttention(32, 4)

    def forward(self, x):
        y, _ = self.module(x, x, x, need_weights=False)
        return y


LAYER = {"dim_feedforward": 64, "dropout": 0.0, "batch_first": True}
MODELS = {  # each large enough for a kernel of ours under `auto`, or visited by `cpu`
    "mlp": (lambda: nn.Sequential(nn.Linear(64, 256), nn.GELU("tanh"), nn.LayerNorm(256), nn.Linear(256, 8), nn.Tanh()), (300, 64)),
    "encoder": (lambda: nn.Sequential(nn.TransformerEncoderLayer(32, 4, **LAYER), nn.ReLU()), (4, 20, 32)),
    "attention": (Attend, (20, 4, 32)),
    "LSTM": (lambda: Recurrent(nn.LSTM(16, 32, 2, bidirectional=True)), (12, 4, 16)),
    "GRU": (lambda: Recurrent(nn.GRU(16, 32)), (12, 4, 16)),
    "RNN": (lambda: Recurrent(nn.RNN(16, 32)), (12, 4, 16)),
    "GRUCell": (lambda: nn.Sequential(nn.GRUCell(16, 32)), (4, 16)),
}  # fmt: skip


def pair(name):
    torch.manual_seed(3)
    make, shape = MODELS[name]
    theirs = make()
    return pyflash.replace(copy.deepcopy(theirs)), theirs, shape


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("mode", ["train", "eval", "eval without gradients"])
def test_a_traced_model_computes(name, backend, mode):
    """torch.jit.trace sees torch's operators only: a kernel's output would be memory that nobody wrote."""
    ours, theirs, shape = pair(name)
    ours.train(mode == "train"), theirs.train(mode == "train")
    with use(backend), torch.set_grad_enabled(mode != "eval without gradients"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TracerWarning, DeprecationWarning
        traced = torch.jit.trace(ours, (torch.randn(shape),), check_trace=False)
        for _ in range(2):
            x = torch.randn(shape)
            torch.testing.assert_close(traced(x), theirs(x))
    assert any(reason == "torch.jit.trace" for _, _, reason in backends.counts) or backend == "auto"


@pytest.mark.parametrize("name", MODELS)
def test_a_scripted_model_is_torchs(name):
    """torch.jit.script compiles source text, and takes torch.nn's for our modules."""
    ours, theirs, shape = pair(name)
    with use("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(ours)
        x = torch.randn(shape)
        torch.testing.assert_close(scripted(x), theirs(x))
    assert [p.data_ptr() for p in scripted.parameters()] == [p.data_ptr() for p in ours.parameters()]


def test_scripting_a_module_of_ours_leaves_it_and_what_is_in_it():
    ours = pyflash.replace(nn.Transformer(16, 2, 1, 1, 16, batch_first=True))
    before = [type(m) for m in ours.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(ours.encoder)
    assert [type(m) for m in ours.modules()] == before


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_symbolic_trace_computes(name, backend):
    ours, theirs, shape = pair(name)
    with use(backend):
        graph = torch.fx.symbolic_trace(ours)
        x = torch.randn(shape)
        torch.testing.assert_close(graph(x), theirs(x))
    inner = [
        m for m in ours.modules() if isinstance(m, (nn.RNNBase, nn.TransformerEncoderLayer, nn.MultiheadAttention))
    ]
    if inner:
        assert any(type(m) is type(inner[0]) for m in graph.modules())  # one node, and still ours


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_what_torch_onnx_exports_holds_torchs_operators(name, backend, monkeypatch):
    """torch.onnx.export translates what torch.export gives it, and knows torch's operators."""
    ours, theirs, shape = pair(name)
    x = torch.randn(shape)
    with use(backend):
        assert "pyflash" in str(torch.export.export(ours.eval(), (x,)).graph)  # so it would without ONNX
        monkeypatch.setattr("torch.onnx.is_in_onnx_export", lambda: True)
        program = torch.export.export(ours.eval(), (x,))
    assert "pyflash" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), theirs.eval()(x))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dynamo", [True, False])
def test_an_onnx_model_computes(name, dynamo, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    ours, theirs, shape = pair(name)
    x = torch.randn(shape)
    with use("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(ours.eval(), (x,), str(tmp_path / "model.onnx"), dynamo=dynamo)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), theirs.eval()(x))
