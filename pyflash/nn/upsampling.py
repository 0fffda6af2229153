"""Upsample and its older forms, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = ["Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d"]


@twin("interpolate")
class Upsample(torch.nn.Upsample):
    """Resizes the last one, two or three dimensions, as torch.nn.Upsample."""

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            recompute_scale_factor=self.recompute_scale_factor,
        )


@twin("interpolate")
class UpsamplingNearest2d(torch.nn.UpsamplingNearest2d):
    """Repeats the nearest place, as torch.nn.UpsamplingNearest2d."""

    forward = Upsample.forward


@twin("interpolate")
class UpsamplingBilinear2d(torch.nn.UpsamplingBilinear2d):
    """Interpolates between four places with the corners aligned, as torch.nn.UpsamplingBilinear2d."""

    forward = Upsample.forward
