"""What `auto` leaves to torch of recurrent layers and cells."""

import pytest
import torch
from helpers import use

import pyflash.nn as nn
from pyflash.auto import SMALL, processor
from pyflash.auto import recurrent as auto
from pyflash.auto.processor import Place
from pyflash.ops.core import backends
from pyflash.ops.core.choice import forget_refused
from pyflash.ops.recurrent import cells, layers, stream

pytest.importorskip("pyflash._cpu")

PREFERRED = [  # cell, module, steps, batch, hidden, training, by ours, why it is here
    ("gru", "cell", 1, 1, 256, False, True, "a stream: the weights are kept packed"),
    ("rnn_tanh", "cell", 1, 1, 8, False, False, "proving that the weights are current outweighs a small step"),
    ("rnn_tanh", "cell", 1, 16, 128, False, True, "of many rows it does not"),
    ("rnn_tanh", "layers", 1, 1, 8, False, True, "torch's layer costs more than its cell"),
    ("rnn_tanh", "layers", 2, 1, 8, False, False, "two of them go the long way"),
    ("gru", "cell", 1, 1, 256, True, False, "in training they are packed for one step"),
    ("rnn_tanh", "layers", 1, 1, 1024, True, False, "the same of a layer"),
    ("gru", "layers", 2, 1, 1024, True, True, "two steps pay for it"),
    ("lstm", "layers", 1, 1, 1024, True, True, "torch rearranges its weights for every call"),
    ("lstm", "layers", 128, 64, 64, True, False, "oneDNN's backward of a narrow layer"),
    ("lstm", "layers", 128, 64, 64, False, True, "its forward is slower"),
    ("lstm", "layers", 128, 32, 256, True, True, "the common case"),
]


@pytest.mark.parametrize("case", PREFERRED, ids=lambda case: case[-1])
def test_auto_takes_the_faster(case):
    cell, module, steps, batch, hidden, training, is_ours, _ = case
    size = auto.Size(cell, module, steps, batch, hidden, hidden, 1, 1, False, False, training)
    assert (auto.decide(Place("zen4", "avx512", "several"), size, torch.float32) == "") == is_ours


ON_A_GPU = [  # cell, steps, batch, hidden, type, training, whose; torch's where None
    ("lstm", 64, 64, 64, torch.bfloat16, False, "triton"),
    ("lstm", 64, 64, 64, torch.bfloat16, True, "cuda"),
    ("gru", 64, 64, 128, torch.bfloat16, False, "cuda"),
    ("rnn_tanh", 64, 64, 128, torch.bfloat16, True, "triton"),
    ("lstm", 1024, 1, 1024, torch.bfloat16, True, "cuda"),
    ("lstm", 8, 64, 128, torch.bfloat16, True, "triton"),  # too few steps for what CUDA C++ was timed at
    ("lstm", 8, 64, 256, torch.bfloat16, True, None),
    ("gru", 1024, 8, 256, torch.float16, True, "cuda"),
    ("lstm", 1024, 8, 256, torch.float16, True, None),
    ("gru", 1024, 64, 1024, torch.float32, True, None),
]


@pytest.mark.parametrize(("cell", "steps", "batch", "hidden", "dtype", "training", "expected"), ON_A_GPU)
def test_auto_takes_the_faster_of_three_on_a_gpu(cell, steps, batch, hidden, dtype, training, expected):
    size = auto.Size(cell, "layers", steps, batch, hidden, hidden, 1, 1, False, False, training)
    faster = [k for k in auto.order(size) if k != "cpu" and not auto.decide(Place("sm90", kernels=k), size, dtype)]
    assert (faster or [None])[0] == expected


CELL_STEPS = [  # cell, batch, hidden, by ours on Zen 5
    ("lstm", 1, 128, False), ("lstm", 1, 256, True), ("gru", 1, 128, False), ("gru", 1, 256, True),
    ("rnn_relu", 1, 512, False), ("rnn_relu", 1, 1024, True), ("lstm", 2, 64, True), ("gru", 16, 32, False),
    ("rnn_tanh", 8, 64, False), ("rnn_tanh", 2, 256, True),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "batch", "hidden", "is_ours"), CELL_STEPS)
def test_auto_leaves_a_small_step_of_a_cell_to_torch_before_looking_at_it(cell, batch, hidden, is_ours, monkeypatch):
    monkeypatch.setattr(processor, "family", lambda backend: "zen5")
    forget_refused()
    looked = []
    monkeypatch.setattr(cells, "infer_cell", lambda *args: looked.append(args) or stream.infer_cell(*args))
    module = getattr(nn, {"lstm": "LSTMCell", "gru": "GRUCell"}.get(cell, "RNNCell"))(hidden, hidden)
    if cell.startswith("rnn"):
        module.nonlinearity = cell.removeprefix("rnn_")
    x = torch.randn(batch, hidden)
    operation = cells.OPERATION_OF[cell]
    with use("auto"), torch.no_grad():
        backends.counts.clear()
        module(x)
        assert [name for _, name, _ in backends.counts] == ["cpu" if is_ours else "torch"]
        assert len(looked) == is_ours and backends.counts[operation, "torch", SMALL] == (not is_ours)
    forget_refused()


LAYERS = [  # cell, steps, batch, hidden, gradients, by ours on Zen 5
    ("gru", 16, 8, 64, True, True), ("gru", 1, 1, 64, True, False), ("gru", 16, 8, 64, False, True),
    ("gru", 1, 1, 64, False, True), ("rnn_tanh", 2, 1, 8, False, False), ("rnn_tanh", 2, 1, 8, True, False),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "steps", "batch", "hidden", "gradients", "is_ours"), LAYERS)
def test_a_usual_call_of_layers_is_told_by_one_look(cell, steps, batch, hidden, gradients, is_ours, monkeypatch):
    """The rules are asked once for calls that are alike, in training as without gradients, and nothing looks closer."""
    monkeypatch.setattr(processor, "family", lambda backend: "zen5")
    forget_refused()
    asked, looked = [], []
    refused = layers._REFUSED[cell, False, False]
    monkeypatch.setattr(
        refused, "_ask", lambda *tensors: asked.append(tensors) or type(refused)._ask(refused, *tensors)
    )
    monkeypatch.setattr(layers, "_arrange", lambda *args, **options: looked.append(args))
    module = nn.GRU(hidden, hidden) if cell == "gru" else nn.RNN(hidden, hidden)
    x, operation = torch.randn(steps, batch, hidden), layers.OPERATION_OF[cell]
    with use("auto"), torch.set_grad_enabled(gradients):
        backends.counts.clear()
        for _ in range(3):
            module(x)
    forget_refused()
    assert [(name, by, n) for (name, by, _), n in backends.counts.items()] == [
        (operation, "cpu" if is_ours else "torch", 3)
    ]
    assert len(asked) == 1 and not looked
