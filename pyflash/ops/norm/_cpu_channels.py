"""BatchNorm, GroupNorm and InstanceNorm; bindings/channel_norm.cpp reads the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.ops.core._cpu_order import in_order
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.norm._cpu import _address, _param
from pyflash.ops.norm.channels import is_last
from pyflash.ops.pointwise._cpu_activation import ACTIVATION_IDS
from pyflash.ops.pointwise.activation import CURVED


def _shape(x, groups):
    return (*x.shape, groups, is_last(x), DTYPES[x.dtype])


_IN_REGISTERS = ("", "relu", "silu")  # Ending in csrc/common/channel_norm.h


def _ending(activation, first, second):
    """How it comes, and which."""
    how = _IN_REGISTERS.index(activation) if activation in _IN_REGISTERS else len(_IN_REGISTERS)
    return how, ACTIVATION_IDS[activation], first, second


def channel_norm_fwd(
    x, residual, weight, bias, running_mean, running_var, groups, uses_input, momentum, eps, activation, first, second,
    y, mean, rstd, new_running_mean, new_running_var,
):  # fmt: skip
    shape = _shape(x, groups)
    workspace = take_workspace(_cpu.channel_norm_workspace(shape), "channel_norm")
    weight, bias = _param(weight, rstd), _param(bias, rstd)
    running_mean, running_var = _param(running_mean, rstd), _param(running_var, rstd)
    tracks = uses_input and running_mean is not None
    problem = (
        *shape, x.data_ptr(), _address(residual), _address(weight), _address(bias), _address(running_mean),
        _address(running_var), y.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
        new_running_mean.data_ptr() if tracks else 0, new_running_var.data_ptr() if tracks else 0,
        workspace.data_ptr(), uses_input, momentum, eps, *_ending(activation, first, second),
    )  # fmt: skip
    _cpu.channel_norm_fwd(problem, torch.get_num_threads())


def channel_norm_bwd(
    dy, x, residual, weight, bias, mean, rstd, groups, uses_input, activation, first, second, saves_output, need_dx,
    need_dresidual, need_dweight, need_dbias, dx, dresidual, dweight, dbias,
):  # fmt: skip
    shape = _shape(x, groups)
    workspace = take_workspace(_cpu.channel_norm_workspace(shape), "channel_norm")
    weight, bias = _param(weight, rstd), _param(bias, rstd)
    dy = in_order(dy, is_last(x))
    problem = (
        *shape, dy.data_ptr(), x.data_ptr(), _address(residual), _address(weight), _address(bias), mean.data_ptr(),
        rstd.data_ptr(), dx.data_ptr() if need_dx else 0, dresidual.data_ptr() if need_dresidual else 0,
        dweight.data_ptr() if need_dweight else 0, dbias.data_ptr() if need_dbias else 0, workspace.data_ptr(),
        uses_input, *_ending(activation, first, second), saves_output,
    )  # fmt: skip
    _cpu.channel_norm_bwd(problem, torch.get_num_threads())


def channel_norm_bwd_bwd(
    dy, x, residual, weight, bias, mean, rstd, ddx, ddresidual, ddweight, ddbias, groups, uses_input, activation, first,
    second, need_ddy, need_dx, need_dresidual, need_dweight, need_dbias, ddy, dx, dresidual, dweight, dbias,
):  # fmt: skip
    shape = _shape(x, groups)
    workspace = take_workspace(_cpu.channel_norm_second_workspace(shape), "channel_norm")
    weight, bias = _param(weight, rstd), _param(bias, rstd)
    ddweight, ddbias = _param(ddweight, rstd), _param(ddbias, rstd)
    dy = in_order(dy, is_last(x))
    ddx, ddresidual = (
        None if t is None else in_order(t, is_last(x), purpose)
        for t, purpose in ((ddx, "order of ddx"), (ddresidual, "order of ddresidual"))
    )
    problem = (
        *shape, _address(ddx), _address(ddresidual), _address(ddweight), _address(ddbias), dy.data_ptr(), x.data_ptr(),
        _address(residual), _address(weight), _address(bias), mean.data_ptr(), rstd.data_ptr(),
        ddy.data_ptr() if need_ddy else 0, dx.data_ptr() if need_dx else 0,
        dresidual.data_ptr() if need_dresidual else 0, dweight.data_ptr() if need_dweight else 0,
        dbias.data_ptr() if need_dbias else 0, workspace.data_ptr(), uses_input, *_ending(activation, first, second),
        activation in CURVED,
    )  # fmt: skip
    _cpu.channel_norm_bwd_bwd(problem, torch.get_num_threads())
