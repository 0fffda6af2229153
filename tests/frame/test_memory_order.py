"""Gradients in another memory order than what they are the gradients of: the copy, and the backward operators that make it."""

import pytest
import torch

import pyflash.functional as PF
from tests.helpers import backend_params, cpu_isas, use

pytest.importorskip("pyflash._cpu")
from pyflash.ops.core._cpu_order import in_order

SHAPES = [  # batch, channels, places: whole squares of every instruction set, rests of them, several strips
    (2, 32, 48),
    (1, 1, 5),
    (3, 7, 1),
    (2, 19, 49),
    (2, 70, 1030),
    (0, 4, 4),
    (2, 600, 3, 3),
    (1, 5, 2, 3, 4),
]
# What a transposition moves, not what it stands for: NaN with a payload, subnormal numbers, the sign of zero.
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def last(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_copy_has_every_bit(shape, dtype, isa):
    most = torch.iinfo(BITS[dtype])
    bits = torch.randint(most.min, most.max, shape, dtype=BITS[dtype])
    t = bits.view(dtype)
    with use(f"cpu:{isa}"):
        for given, wanted in ((t, True), (last(bits).view(dtype), False)):
            copy = in_order(given, wanted)
            assert (copy.movedim(1, -1) if wanted else copy).is_contiguous()
            assert torch.equal(copy.view(BITS[dtype]), bits)


def test_what_is_in_order_is_no_copy():
    t = torch.randn(2, 5, 7)
    assert in_order(t, False) is t
    pixels = last(t)
    assert in_order(pixels, True) is pixels


def test_gradients_of_neither_order():
    wide = torch.randn(2, 5, 14)[..., ::2]
    for strange in (wide, torch.ones(()).expand(2, 5, 7), wide.flip(1).transpose(0, 1).contiguous().transpose(0, 1)):
        for wanted in (False, True):
            assert torch.equal(in_order(strange, wanted), strange)


FUNCTIONS = {
    "batch_norm": lambda x: PF.batch_norm(x, None, None, training=True),
    "group_norm": lambda x: PF.group_norm(x, 3),
    "instance_norm": PF.instance_norm,
    "local_response_norm": lambda x: PF.local_response_norm(x, 3),
    "max_pool2d": lambda x: PF.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda x: PF.avg_pool2d(x, 2),
}


@pytest.mark.parametrize("backend", backend_params("cpu", "triton"))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_do_not_depend_on_their_order(name, backend):
    function = FUNCTIONS[name]
    with use(backend):
        for order in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 18, 6, 8).contiguous(memory_format=order).requires_grad_()
            y = function(x)
            dy = torch.randn(y.shape)
            dys = dy, last(dy), torch.stack((dy, dy), -1)[..., 0]
            first, *others = (torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in dys)
            assert first.stride() == x.stride()
            for other in others:
                assert torch.equal(first, other) and other.stride() == x.stride()


def test_memory_of_another_type_before():
    """Memory of a call is taken again: what its bytes were before, an odd number of two, is no matter."""
    for dtype, channels in ((torch.bfloat16, 3), (torch.float32, 1), (torch.float64, 1)):
        t = torch.randn(1, channels, 3, 1).to(dtype)
        moved = in_order(last(t), False, "odd") if channels > 1 else in_order(t.expand(1, 2, 3, 1), True, "odd")
        assert torch.equal(moved, t.expand_as(moved))
