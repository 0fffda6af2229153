"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch.nn.functional as F

from pyflash.ops.conv.functions import (
    conv1d,
    conv2d,
    conv3d,
    conv_bias_act,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from pyflash.ops.core.public import stands_for

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_bias_act",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
]

stands_for({getattr(F, name): globals()[name] for name in __all__ if name != "conv_bias_act"})
