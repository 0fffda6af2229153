"""Local response normalisation; bindings/local_response.cpp reads the tuple field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.ops.core._cpu_order import in_order
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.norm.channels import is_last


def _run(dy, x, size, alpha, beta, k, to):
    if not x.numel():
        return
    batch, channels, positions = x.shape
    before, after = min(size // 2, channels - 1), min((size - 1) // 2, channels - 1)
    last = is_last(x) or positions == 1
    threads = torch.get_num_threads()
    elements = 0  # a forward of planes keeps none
    if last or dy is not None:
        elements = _cpu.local_response_workspace(channels, last, before, after) * threads
    workspace = take_workspace(elements * (8 if x.dtype == torch.float64 else 4), "local_response")
    problem = (
        x.data_ptr(), 0 if dy is None else dy.data_ptr(), to.data_ptr(), workspace.data_ptr(), batch, channels, positions,
        last, before, after, alpha / size, beta, k, DTYPES[x.dtype],
    )  # fmt: skip
    _cpu.local_response(problem, threads)


def local_response_norm_fwd(x, size, alpha, beta, k, y):
    _run(None, x, size, alpha, beta, k, y)


def local_response_norm_bwd(dy, x, size, alpha, beta, k, dx):
    _run(in_order(dy, is_last(x)), x, size, alpha, beta, k, dx)
