"""Gated activations; bindings/pointwise.cpp reads the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.kernels.gated import all_halves, halves, rows_of
from pyflash.ops.core.native import DTYPES
from pyflash.ops.pointwise._cpu_activation import ACTIVATION_IDS


def gated_fwd(gate, value, swapped, activation, first, second, y):
    gate, value = halves(gate, value, swapped)
    rows, cols, strides = rows_of(gate, value)
    problem = (
        gate.data_ptr(), value.data_ptr(), *strides, y.data_ptr(), rows, cols,
        ACTIVATION_IDS[activation], first, second, DTYPES[y.dtype],
    )  # fmt: skip
    _cpu.gated_fwd(problem, torch.get_num_threads())


def gated_bwd(dy, gate, value, swapped, activation, first, second, dgate, dvalue):
    dgate, dvalue = halves(dgate, None if value is None else dvalue, swapped)
    gate, value = halves(gate, value, swapped)
    rows, cols, strides = rows_of(gate, value, dgate, dvalue)
    problem = (
        dy.data_ptr(), gate.data_ptr(), value.data_ptr(), *strides[:2],
        dgate.data_ptr(), dvalue.data_ptr(), *strides[2:], rows, cols,
        ACTIVATION_IDS[activation], first, second, DTYPES[dy.dtype],
    )  # fmt: skip
    _cpu.gated_bwd(problem, torch.get_num_threads())


def gated_bwd_bwd(dy, gate, value, ddgate, ddvalue, swapped, activation, first, second, ddy, dgate, dvalue):
    ddgate, ddvalue, gate, value, dgate, dvalue = all_halves(ddgate, ddvalue, gate, value, dgate, dvalue, swapped)
    rows, cols, strides = rows_of(ddgate, ddvalue, gate, value, dgate, dvalue)
    problem = (
        _address(ddgate), _address(ddvalue), dy.data_ptr(), gate.data_ptr(), value.data_ptr(), *strides[:4],
        ddy.data_ptr(), dgate.data_ptr(), dvalue.data_ptr(), *strides[4:], rows, cols,
        ACTIVATION_IDS[activation], first, second, DTYPES[dy.dtype],
    )  # fmt: skip
    _cpu.gated_bwd_bwd(problem, torch.get_num_threads())


def _address(t):
    return 0 if t is None else t.data_ptr()
