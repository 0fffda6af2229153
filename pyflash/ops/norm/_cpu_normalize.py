"""Vectors over their norm; bindings/normalize.cpp reads the tuple field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.ops.core.native import DTYPES


def _run(dy, x, norm, kind, eps, to):
    problem = (
        x.data_ptr(), 0 if dy is None else dy.data_ptr(), norm.data_ptr(), to.data_ptr(), *x.shape,
        _cpu.VECTOR_NORMS.index(kind), eps, DTYPES[x.dtype],
    )  # fmt: skip
    _cpu.normalize(problem, torch.get_num_threads())


def normalize_fwd(x, kind, eps, y, norm):
    _run(None, x, norm, kind, eps, y)


def normalize_bwd(dy, x, norm, kind, eps, dx):
    _run(dy, x, norm, kind, eps, dx)
