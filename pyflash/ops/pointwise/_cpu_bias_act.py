"""Bias, activation, dropout and residual; bindings/pointwise.cpp reads the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.kernels.dropout import keep_scale, threshold
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.pointwise._cpu_activation import ACTIVATION_IDS
from pyflash.ops.pointwise.channels import channels_of, one_channel


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def _epilogue(bias, of, seed, activation, first, second, gain, clamp, dropout_p):
    return (
        _address(bias), *of, ACTIVATION_IDS[activation], first, second, gain, clamp,
        _address(seed), threshold(dropout_p), keep_scale(dropout_p),
    )  # fmt: skip


def bias_act_fwd(x, bias, residual, seed, dim, activation, first, second, gain, clamp, dropout_p, y):
    of = one_channel(x) if bias is None else channels_of(x, dim)
    bias = None if bias is None else bias.to(acc_dtype(x.dtype))  # as the kernel reads it
    problem = (
        x.data_ptr(), _address(residual), y.data_ptr(), x.numel(),
        *_epilogue(bias, of, seed, activation, first, second, gain, clamp, dropout_p), DTYPES[x.dtype],
    )  # fmt: skip
    _cpu.bias_act_fwd(problem, torch.get_num_threads())


def bias_act_bwd(
    dy, x, bias, seed, dim, activation, first, second, gain, clamp, dropout_p, need_dbias, dx, dbias
):  # fmt: skip
    of, workspace = channels_of(dy, dim) if need_dbias or bias is not None else one_channel(dy), None
    bias = None if bias is None else bias.to(acc_dtype(dy.dtype))
    if need_dbias:
        workspace = take_workspace(_cpu.channel_workspace(dy.numel(), of[0]), "channels")
    problem = (
        dy.data_ptr(), _address(x), dx.data_ptr(), dbias.data_ptr() if need_dbias else 0, _address(workspace),
        dy.numel(), *_epilogue(bias, of, seed, activation, first, second, gain, clamp, dropout_p), DTYPES[dy.dtype],
    )  # fmt: skip
    _cpu.bias_act_bwd(problem, torch.get_num_threads())
