"""LayerNorm and RMSNorm over the rows of a matrix; bindings/norm.h reads the tuples field by field, in this order."""

import torch

from pyflash.ops.core._cuda import DTYPES, address, launch, native


def _row_stride(tensor):
    return 0 if tensor is None else tensor.stride(0)


def _param(param, rstd):
    """The kernel reads weight and bias in its arithmetic type; a row's worth of conversion for half types."""
    return param if param is None or param.dtype == rstd.dtype else param.to(rstd.dtype)


def layer_norm_fwd(x, residual, weight, bias, eps, y, summed, mean, rstd):
    weight, bias = _param(weight, rstd), _param(bias, rstd)
    problem = (
        x.data_ptr(), address(residual), address(weight), address(bias),
        y.data_ptr(), 0 if residual is None else summed.data_ptr(), address(mean), rstd.data_ptr(),
        *x.shape, x.stride(0), _row_stride(residual), eps, DTYPES[x.dtype],
    )  # fmt: skip
    launch(native.layer_norm_fwd, problem, x)


def layer_norm_bwd(
    dy, dsummed, x, weight, mean, rstd, need_dx, need_dweight, need_dbias, dx, dweight, dbias
):  # fmt: skip
    weight, workspace = _param(weight, rstd), None
    if need_dweight or need_dbias:
        size = native.layer_norm_bwd_workspace(*x.shape)
        workspace = torch.empty(size, dtype=rstd.dtype, device=rstd.device)
    problem = (
        dy.data_ptr(), address(dsummed), x.data_ptr(), address(weight), address(mean), rstd.data_ptr(),
        dx.data_ptr() if need_dx else 0, dweight.data_ptr() if need_dweight else 0,
        dbias.data_ptr() if need_dbias else 0, address(workspace),
        *x.shape, dy.stride(0), _row_stride(dsummed), x.stride(0), DTYPES[x.dtype],
    )  # fmt: skip
    launch(native.layer_norm_bwd, problem, x)


def rms_norm_fwd(x, residual, weight, eps, y, summed, rstd):
    layer_norm_fwd(x, residual, weight, None, eps, y, summed, None, rstd)


def rms_norm_bwd(dy, dsummed, x, weight, rstd, need_dx, need_dweight, dx, dweight):
    layer_norm_bwd(dy, dsummed, x, weight, None, rstd, need_dx, need_dweight, False, dx, dweight, None)
