"""Argument checks: what stands between a raw pointer and a wrong address."""

from __future__ import annotations

import torch


def expect(condition: bool, operation: str, message, error: type[Exception] = ValueError) -> None:
    """Raises `error` with "pyflash.<operation>: <message()>" unless `condition` holds."""
    if not condition:
        raise error(f"pyflash.{operation}: {message()}")


def is_plain(tensor) -> bool:
    """A tensor with memory of its own that a kernel may read: no subclass with its own dispatch, strided, not complex.

    Fake and functional tensors of torch.compile and torch.export count: they never reach a kernel.
    """
    kind = type(tensor)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter and not torch.compiler.is_compiling():
        if kind.__torch_function__ is not torch.Tensor.__torch_function__:
            if kind.__torch_function__ is not torch._C._disabled_torch_function_impl:
                return False
        if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and not _is_traced(tensor):
            return False
    return (
        tensor.layout is torch.strided
        and tensor.is_floating_point()
        and not tensor.is_quantized
        and not tensor.is_nested
    )


def _is_traced(tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(tensor, (FakeTensor, FunctionalTensor))


def is_dense(tensor: torch.Tensor) -> bool:
    """Do the elements fill one piece of memory without holes or overlaps, in any order of dimensions?"""
    return tensor.is_contiguous() or torch.empty_like(tensor, device="meta").stride() == tensor.stride()
