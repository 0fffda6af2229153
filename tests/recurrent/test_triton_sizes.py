"""Recurrent layers at the sizes of each way to walk them, on the device if there is one: forward and backward, against
float64 torch. The interpreter runs one small size; what is odd about layouts and lengths is in test_triton_rnn.py.
"""

import pytest
import torch
from helpers import STAND_IN, assert_error_within

import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.recurrent.rnn_helpers import CELLS, serving

if backends.MISSING["triton"] or STAND_IN:
    pytest.skip(backends.MISSING["triton"] or "torch's layers want a real device", allow_module_level=True)

pytestmark = [pytest.mark.triton, pytest.mark.on_device, pytest.mark.usefixtures("exact_float32")]
ON_A_GPU = pytest.mark.skipif(backends.INTERPRETING, reason="takes minutes in the interpreter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "steps, batch, hidden",
    [(5, 7, 40), *(pytest.param(64, 64, hidden, marks=ON_A_GPU) for hidden in (64, 128, 256, 512))],
)
@pytest.mark.parametrize("cell", CELLS)
def test_every_size_has_torchs_accuracy(cell, steps, batch, hidden, dtype):
    theirs = getattr(torch.nn, cell)(hidden, hidden).to(dtype)
    ours, wide = getattr(nn, cell)(hidden, hidden).to(dtype), getattr(torch.nn, cell)(hidden, hidden).double()
    for other in (ours, wide):
        other.load_state_dict(theirs.state_dict())
    x, dy = (torch.randn(steps, batch, hidden).to(dtype) for _ in range(2))

    def both(module, dtype):
        own = x.to(dtype).requires_grad_()
        y, states = module(own)
        grads = torch.autograd.grad(y, [own, *module.parameters()], dy.to(dtype))
        return y.detach(), *(states if isinstance(states, tuple) else (states,)), *grads

    with serving("triton"):
        found = both(ours, dtype)
    for each in zip(found, both(theirs, dtype), both(wide, torch.float64), strict=True):
        assert_error_within(*((result.detach(),) for result in each))
