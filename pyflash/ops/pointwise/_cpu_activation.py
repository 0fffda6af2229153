"""Element-wise activations over dense memory."""

import torch

from pyflash import _cpu
from pyflash.activations import ACTIVATIONS
from pyflash.ops.core.native import DTYPES

ACTIVATION_IDS = {name: number for number, name in enumerate(ACTIVATIONS)}  # csrc/common/activations.inc


def activation_fwd(x, activation, y):
    _cpu.activation_fwd(
        x.data_ptr(), y.data_ptr(), x.numel(), ACTIVATION_IDS[activation], DTYPES[x.dtype], torch.get_num_threads()
    )


def activation_bwd(dy, saved, activation, dx):
    _cpu.activation_bwd(
        dy.data_ptr(), saved.data_ptr(), dx.data_ptr(), dy.numel(),
        ACTIVATION_IDS[activation], DTYPES[dy.dtype], torch.get_num_threads(),
    )  # fmt: skip
