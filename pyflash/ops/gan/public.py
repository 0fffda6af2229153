"""What the family offers in pyflash.functional. torch has no function for any of it."""

from pyflash.ops.gan.filtered_lrelu import filtered_lrelu
from pyflash.ops.gan.filters import setup_filter
from pyflash.ops.gan.minibatch_stddev import minibatch_stddev
from pyflash.ops.gan.modulated_conv import conv2d_resample, modulated_conv2d
from pyflash.ops.gan.upfirdn2d import downsample2d, filter2d, upfirdn2d, upsample2d

__all__ = [
    "conv2d_resample",
    "downsample2d",
    "filter2d",
    "filtered_lrelu",
    "minibatch_stddev",
    "modulated_conv2d",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
]
