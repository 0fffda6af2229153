"""PReLU and RReLU over dense memory; bindings/pointwise.cpp reads the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.pointwise.channels import channels_of, one_channel


def prelu_fwd(x, weight, y):
    of = one_channel(x) if weight.numel() == 1 else channels_of(x, 1)
    weight = weight.to(acc_dtype(x.dtype))
    problem = x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel(), *of, DTYPES[x.dtype]
    _cpu.prelu_fwd(problem, torch.get_num_threads())


def prelu_bwd(dy, x, weight, need_dweight, dx, dweight):
    of = one_channel(x) if weight.numel() == 1 else channels_of(x, 1)
    weight = weight.to(acc_dtype(x.dtype))
    workspace = take_workspace(_cpu.channel_workspace(x.numel(), of[0]), "channels") if need_dweight else None
    problem = (
        dy.data_ptr(), x.data_ptr(), weight.data_ptr(), dx.data_ptr(), dweight.data_ptr() if need_dweight else 0,
        0 if workspace is None else workspace.data_ptr(), x.numel(), *of, DTYPES[x.dtype],
    )  # fmt: skip
    _cpu.prelu_bwd(problem, torch.get_num_threads())


def rrelu(d, x, seed, lower, upper, y):
    problem = (
        d.data_ptr(), x.data_ptr(), seed.data_ptr(), y.data_ptr(), d.numel(), lower, upper, DTYPES[d.dtype]
    )  # fmt: skip
    _cpu.rrelu(problem, torch.get_num_threads())
