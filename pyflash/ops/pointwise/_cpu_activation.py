"""Element-wise activations over dense memory; bindings/pointwise.h reads the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.activations import ACTIVATIONS
from pyflash.ops.core.native import DTYPES

ACTIVATION_IDS = {name: number for number, name in enumerate(ACTIVATIONS)}  # csrc/common/activations.inc
ACTIVATION_IDS[""] = -1  # none, where there may be none


def activation_fwd(x, activation, first, second, y):
    problem = (
        x.data_ptr(), y.data_ptr(), x.numel(), ACTIVATION_IDS[activation], first, second, DTYPES[x.dtype]
    )  # fmt: skip
    _cpu.activation_fwd(problem, torch.get_num_threads())


def activation_bwd(dy, saved, activation, first, second, dx):
    problem = (
        dy.data_ptr(), saved.data_ptr(), dx.data_ptr(), dy.numel(),
        ACTIVATION_IDS[activation], first, second, DTYPES[dy.dtype],
    )  # fmt: skip
    _cpu.activation_bwd(problem, torch.get_num_threads())


def activation_bwd_bwd(ddx, dy, saved, activation, first, second, need_ddy, ddy, dsaved):
    problem = (
        ddx.data_ptr(), dy.data_ptr(), saved.data_ptr(), ddy.data_ptr() if need_ddy else 0, dsaved.data_ptr(),
        ddx.numel(), ACTIVATION_IDS[activation], first, second, DTYPES[ddx.dtype],
    )  # fmt: skip
    _cpu.activation_bwd_bwd(problem, torch.get_num_threads())
