"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch.nn.functional as F

from pyflash.ops.core.public import stands_for
from pyflash.ops.resample.interpolate import interpolate, upsample, upsample_bilinear, upsample_nearest
from pyflash.ops.resample.pad import pad

__all__ = ["interpolate", "pad", "upsample", "upsample_bilinear", "upsample_nearest"]

stands_for(
    {
        F.interpolate: interpolate,
        F.pad: pad,
        F.upsample: upsample,
        F.upsample_bilinear: upsample_bilinear,
        F.upsample_nearest: upsample_nearest,
    }
)
