"""InstanceNorm1d, 2d and 3d, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import leaf, twin

__all__ = [
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
]


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


@twin("instance_norm")
class LazyInstanceNorm1d(torch.nn.LazyInstanceNorm1d, InstanceNorm1d):
    """A InstanceNorm1d whose num_features its first input tells, as torch.nn.LazyInstanceNorm1d; from then on it is one of ours."""

    cls_to_become = InstanceNorm1d


@twin("instance_norm")
class LazyInstanceNorm2d(torch.nn.LazyInstanceNorm2d, InstanceNorm2d):
    """A InstanceNorm2d whose num_features its first input tells, as torch.nn.LazyInstanceNorm2d; from then on it is one of ours."""

    cls_to_become = InstanceNorm2d


@twin("instance_norm")
class LazyInstanceNorm3d(torch.nn.LazyInstanceNorm3d, InstanceNorm3d):
    """A InstanceNorm3d whose num_features its first input tells, as torch.nn.LazyInstanceNorm3d; from then on it is one of ours."""

    cls_to_become = InstanceNorm3d
