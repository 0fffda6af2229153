"""BatchNorm1d, 2d and 3d, as torch.nn's; SyncBatchNorm is torch's own."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import leaf, twin, weight_and_bias

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d"]


def _forward(self, input: Tensor) -> Tensor:
    return normalise(self, input, F.batch_norm)


def by_torch(self, input: Tensor) -> Tensor:
    """The forward of a call that `auto` leaves to torch."""
    return normalise(self, input, torch.nn.functional.batch_norm)


def normalise(self, input: Tensor, function, **behind) -> Tensor:
    """`function` as the module calls it in the mode it is in, with further keywords, and what it tracks brought up to date."""
    self._check_input_dim(input)
    weight, bias = weight_and_bias(self)
    mean, var, num_batches = _tracked(self)
    training, momentum = self.training, self.momentum
    tracks = training and self.track_running_stats and num_batches is not None
    if momentum is None:  # the average of all batches
        momentum = 1.0 / (float(num_batches) + 1.0) if tracks else 0.0
    uses_input = training or (mean is None and var is None)
    if training and not self.track_running_stats:
        mean = var = None
    y = function(input, mean, var, weight, bias, uses_input, momentum, self.eps, **behind)
    if tracks:  # after the call, which may raise
        num_batches.add_(1)
    return y


def _tracked(self) -> tuple:
    """running_mean, running_var and num_batches_tracked, as weight_and_bias reads."""
    held = self._buffers
    try:
        return held["running_mean"], held["running_var"], held["num_batches_tracked"]
    except KeyError:  # no buffer any more
        return self.running_mean, self.running_var, self.num_batches_tracked


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
