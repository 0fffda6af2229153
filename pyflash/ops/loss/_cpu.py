"""Means of terms; bindings/loss.cpp reads the tuples field by field, in this order."""

import math

import torch

from pyflash import _cpu
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace

_TERMS = {name: number for number, name in enumerate(_cpu.LOSS_TERMS)}
_ABSENT = 0, 0, 0, 0, 0, 0.0, 0


def _part(x, term, dd=None, to=None):
    """The fields of a LossPart."""
    return (
        x.data_ptr(), 0 if dd is None else dd.data_ptr(), 0 if to is None else to.data_ptr(), x.numel(),
        _TERMS[term], 1 / (x.numel() or math.nan), DTYPES[x.dtype],
    )  # fmt: skip


def _sums(parts, result):
    chunks = sum([_cpu.loss_chunks(part[3]) for part in parts])
    workspace = take_workspace(8 * chunks, "loss")
    problem = *parts[0], *parts[1], workspace.data_ptr(), result.data_ptr(), DTYPES[result.dtype]
    _cpu.loss_sums(problem, torch.get_num_threads())


def _gradients(dy, parts):
    _cpu.loss_gradients((*parts[0], *parts[1], dy.data_ptr(), DTYPES[dy.dtype]), torch.get_num_threads())


def mean_terms_fwd(x, z, x_term, z_term, dtype, y):
    _sums((_part(x, x_term), _ABSENT if z is None else _part(z, z_term)), y)


def mean_terms_bwd(dy, x, z, x_term, z_term, need_dx, need_dz, dx, dz):
    _gradients(
        dy,
        (
            _part(x, x_term, None, dx) if need_dx else _ABSENT,
            _part(z, z_term, None, dz) if need_dz else _ABSENT,
        ),
    )


def mean_terms_second(dy, ddx, ddz, x, z, x_term, z_term, ddy, dx, dz):
    parts = (
        _ABSENT if ddx is None else _part(x, x_term, ddx, dx),
        _ABSENT if ddz is None else _part(z, z_term, ddz, dz),
    )
    _sums(parts, ddy)
    _gradients(dy, parts)
