"""Pooling kernels of the CPU. bindings/pool.cpp reads the tuples field by field, in this order."""

from math import prod

import torch

from pyflash import _cpu
from pyflash.ops.core._cpu_order import in_order
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.pool.max_unpool import wrong_place

_NOT_THERE = (1, 1, 1, 1, 0, 1)
_INDICES = {torch.int32: 1, torch.int64: 2}


def _shape(shape, channels_last, *windows):
    """PoolShape of an input of this shape: outer, inner, and the three dimensions."""
    n = len(windows[0])
    axes = list(zip(map(int, shape[-n:]), *windows))
    batch, channels = (prod(shape[: -n - 1]), shape[-n - 1]) if channels_last else (prod(shape[:-n]), 1)
    return (batch, channels, *[_NOT_THERE] * (3 - n), *axes)


def _is_channels_last(x, n):
    return n > 1 and x.dim() == n + 2 and not x.is_contiguous()


def max_pool_fwd(x, size, kernel, stride, padding, dilation, index_bits, y, indices):
    shape = _shape(x.shape, _is_channels_last(x, len(size)), size, kernel, stride, padding, dilation)
    index = _INDICES[indices.dtype] if index_bits else 0
    address = indices.data_ptr() if index_bits else 0
    _cpu.max_pool_fwd((x.data_ptr(), y.data_ptr(), address, *shape, index, DTYPES[x.dtype]), torch.get_num_threads())


def max_pool_bwd(dy, indices, input_size, channels_last, size, kernel, stride, padding, dilation, dx):
    shape = _shape(input_size, channels_last, size, kernel, stride, padding, dilation)
    dy = in_order(dy, channels_last)
    threads, dtype = torch.get_num_threads(), DTYPES[dy.dtype]
    workspace = take_workspace(threads * _cpu.max_pool_bwd_workspace((*shape, dtype)), "max_pool")
    addresses = dy.data_ptr(), indices.data_ptr(), dx.data_ptr(), workspace.data_ptr()
    _cpu.max_pool_bwd((*addresses, *shape, _INDICES[indices.dtype], dtype), threads)


def avg_pool_fwd(x, size, kernel, stride, padding, count_include_pad, divisor, y):
    dilation = (1,) * len(size)
    shape = _shape(x.shape, _is_channels_last(x, len(size)), size, kernel, stride, padding, dilation)
    problem = x.data_ptr(), y.data_ptr(), *shape, count_include_pad, divisor, DTYPES[x.dtype]
    _cpu.avg_pool_fwd(problem, torch.get_num_threads())


def avg_pool_bwd(dy, input_size, channels_last, size, kernel, stride, padding, count_include_pad, divisor, dx):
    shape = _shape(input_size, channels_last, size, kernel, stride, padding, (1,) * len(size))
    dy = in_order(dy, channels_last)
    problem = dy.data_ptr(), dx.data_ptr(), *shape, count_include_pad, divisor, DTYPES[dy.dtype]
    _cpu.avg_pool_bwd(problem, torch.get_num_threads())


def max_unpool_fwd(x, indices, size, channels_last, y):
    _max_unpool(_cpu.max_unpool_fwd, x, indices, y, x.shape, y.shape, len(size), channels_last)


def max_unpool_bwd(dy, indices, n, channels_last, dx):
    _max_unpool(_cpu.max_unpool_bwd, dy, indices, dx, dx.shape, dy.shape, n, channels_last)


def _max_unpool(kernel, from_, indices, to, pooled, unpooled, n, channels_last):
    inner = pooled[-n - 1] if channels_last else 1
    planes = prod(pooled[:-n]) // max(inner, 1), inner, prod(pooled[-n:]), prod(unpooled[-n:])
    problem = from_.data_ptr(), indices.data_ptr(), to.data_ptr(), *planes, DTYPES[from_.dtype]
    place = kernel(problem, torch.get_num_threads())
    if place >= 0:  # in the order of memory
        index = indices.as_strided((indices.numel(),), (1,))[place]
        raise RuntimeError(wrong_place(int(index), tuple(unpooled[-n:])))
