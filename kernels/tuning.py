"""Launch parameters as data, one row per architecture and shape class; chosen by pure functions, testable without a GPU.

Nothing is measured at run time. "interpreter" rows are small so that small shapes cross many tiles.
"""

import functools

import torch
import triton

from pyflash.kernels.primitives import INTERPRETED


@functools.cache
def arch(device):
    """The row set for a device: "interpreter", "sm80", "sm86", "sm90" or "sm100"."""
    if INTERPRETED.value:
        return "interpreter"
    return arch_of(torch.cuda.get_device_capability(device))


def arch_of(capability):
    """sm_86, 89 and 12x share little shared memory, about 100 KB; the data-centre parts have 164 KB and more."""
    major, minor = capability
    if major == 9:
        return "sm90"
    if major in (10, 11):
        return "sm100"
    return "sm80" if (major, minor) == (8, 0) or (major, minor) == (8, 7) else "sm86"


def input_precision():
    """How float32 products may round: "tf32" only where torch allows it to its own."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def feature_block(dim):
    """The width of the block that holds a head: a power of two, 16 at least for tl.dot."""
    return max(16, triton.next_power_of_2(dim))


def _config(block_m, block_n, num_warps, num_stages):
    return dict(BLOCK_M=block_m, BLOCK_N=block_n, num_warps=num_warps, num_stages=num_stages)


# arch: (widest head, config) rows in ascending order, half types first.
_INTERPRETER = {"half": [(256, _config(32, 16, 4, 1))], "float32": [(256, _config(32, 16, 4, 1))]}


def attention_fwd(arch, dtype, head_dim):
    return dict(_config(32, 16, 4, 1))


def attention_bwd_dq(arch, dtype, head_dim):
    return dict(_config(32, 16, 4, 1))


def attention_bwd_dkdv(arch, dtype, head_dim):
    return dict(_config(16, 32, 4, 1))
