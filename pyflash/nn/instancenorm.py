"""InstanceNorm1d, 2d and 3d, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import leaf, twin

__all__ = ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]


def _apply_instance_norm(self, input: Tensor) -> Tensor:
    return F.instance_norm(
        input,
        self.running_mean,
        self.running_var,
        self.weight,
        self.bias,
        self.training or not self.track_running_stats,
        self.momentum if self.momentum is not None else 0.0,
        self.eps,
    )


@twin("instance_norm")
@leaf
class InstanceNorm1d(torch.nn.InstanceNorm1d):
    """Normalises each channel of a sample, as torch.nn.InstanceNorm1d. Ulyanov et al. 2016, arXiv:1607.08022."""

    _apply_instance_norm = _apply_instance_norm


@twin("instance_norm")
@leaf
class InstanceNorm2d(torch.nn.InstanceNorm2d):
    """Normalises each channel of a sample, as torch.nn.InstanceNorm2d. Ulyanov et al. 2016, arXiv:1607.08022."""

    _apply_instance_norm = _apply_instance_norm


@twin("instance_norm")
@leaf
class InstanceNorm3d(torch.nn.InstanceNorm3d):
    """Normalises each channel of a sample, as torch.nn.InstanceNorm3d. Ulyanov et al. 2016, arXiv:1607.08022."""

    _apply_instance_norm = _apply_instance_norm
