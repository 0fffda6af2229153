"""Activations over dense memory; bindings/pointwise.h reads the tuples field by field, in this order."""

from pyflash.activations import ACTIVATIONS
from pyflash.ops.core._cuda import DTYPES, launch, native

ROWS = {name: number for number, name in enumerate(ACTIVATIONS)}  # csrc/common/activations.inc


def activation_fwd(x, activation, first, second, y):
    problem = x.data_ptr(), y.data_ptr(), x.numel(), ROWS[activation], first, second, DTYPES[x.dtype]
    launch(native.activation_fwd, problem, x)


def activation_bwd(dy, saved, activation, first, second, dx):
    problem = (
        dy.data_ptr(), saved.data_ptr(), dx.data_ptr(), dy.numel(), ROWS[activation], first, second, DTYPES[dy.dtype],
    )  # fmt: skip
    launch(native.activation_bwd, problem, dy)


def activation_bwd_bwd(ddx, dy, saved, activation, first, second, need_ddy, ddy, dsaved):
    problem = (
        ddx.data_ptr(), dy.data_ptr(), saved.data_ptr(), ddy.data_ptr() if need_ddy else 0, dsaved.data_ptr(),
        ddx.numel(), ROWS[activation], first, second, DTYPES[ddx.dtype],
    )  # fmt: skip
    launch(native.activation_bwd_bwd, problem, ddx)
