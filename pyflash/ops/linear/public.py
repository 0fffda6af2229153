"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch.nn.functional as F

from pyflash.ops.core.public import stands_for
from pyflash.ops.linear.linear import linear, linear_act

__all__ = ["linear", "linear_act"]

stands_for({F.linear: linear})
