"""BatchNorm1d, 2d and 3d, as torch.nn's; SyncBatchNorm is torch's own."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import leaf, twin

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d"]


def _forward(self, input: Tensor) -> Tensor:
    return normalise(self, input, F.batch_norm)


def normalise(self, input: Tensor, function, **behind) -> Tensor:
    """`function` as the module calls it in the mode it is in, with further keywords, and what it tracks brought up to date."""
    self._check_input_dim(input)
    tracks = self.training and self.track_running_stats and self.num_batches_tracked is not None
    momentum = 0.0 if self.momentum is None else self.momentum
    if tracks and self.momentum is None:  # the average of all batches
        momentum = 1.0 / (float(self.num_batches_tracked) + 1.0)
    uses_input = self.training or (self.running_mean is None and self.running_var is None)
    kept = not self.training or self.track_running_stats
    y = function(
        input,
        self.running_mean if kept else None,
        self.running_var if kept else None,
        self.weight,
        self.bias,
        uses_input,
        momentum,
        self.eps,
        **behind,
    )
    if tracks:  # after the call, which may raise
        self.num_batches_tracked.add_(1)
    return y


@twin("batch_norm")
@leaf
class BatchNorm1d(torch.nn.BatchNorm1d):
    """Normalises each channel over the batch, as torch.nn.BatchNorm1d. Ioffe & Szegedy 2015, arXiv:1502.03167."""

    forward = _forward


@twin("batch_norm")
@leaf
class BatchNorm2d(torch.nn.BatchNorm2d):
    """Normalises each channel over the batch, as torch.nn.BatchNorm2d. Ioffe & Szegedy 2015, arXiv:1502.03167."""

    forward = _forward


@twin("batch_norm")
@leaf
class BatchNorm3d(torch.nn.BatchNorm3d):
    """Normalises each channel over the batch, as torch.nn.BatchNorm3d. Ioffe & Szegedy 2015, arXiv:1502.03167."""

    forward = _forward


@twin("batch_norm")
class LazyBatchNorm1d(torch.nn.LazyBatchNorm1d, BatchNorm1d):
    """A BatchNorm1d whose num_features its first input tells, as torch.nn.LazyBatchNorm1d; from then on it is one of ours."""

    cls_to_become = BatchNorm1d


@twin("batch_norm")
class LazyBatchNorm2d(torch.nn.LazyBatchNorm2d, BatchNorm2d):
    """A BatchNorm2d whose num_features its first input tells, as torch.nn.LazyBatchNorm2d; from then on it is one of ours."""

    cls_to_become = BatchNorm2d


@twin("batch_norm")
class LazyBatchNorm3d(torch.nn.LazyBatchNorm3d, BatchNorm3d):
    """A BatchNorm3d whose num_features its first input tells, as torch.nn.LazyBatchNorm3d; from then on it is one of ours."""

    cls_to_become = BatchNorm3d
