"""How the kernels of csrc/cuda are called: checked tensors in, addresses to the native module, on the device of the tensors
and on torch's current stream there. Under PYFLASH_CUDA_HOST=1 the module is its twin, which takes CPU tensors.
"""

import torch

from pyflash.ops.core.backends import CUDA_ON_HOST, cuda_module

native = cuda_module()
DTYPES = {getattr(torch, name): number for name, number in native.DTYPES.items()}


def address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def launch(kernel, problem, tensor):
    """`kernel` of the native module on a tuple of its fields, where `tensor` lies. Nothing waits for it: torch gives memory
    that is freed to later work of the same stream only."""
    if CUDA_ON_HOST:
        kernel(problem, 0, 0)
    else:
        device = tensor.device.index
        kernel(problem, device, torch._C._cuda_getCurrentRawStream(device))
