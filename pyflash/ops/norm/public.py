"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch.nn.functional as F

from pyflash.ops.core.public import stands_for
from pyflash.ops.norm.layer_norm import add_layer_norm, layer_norm

__all__ = ["add_layer_norm", "layer_norm"]

stands_for({F.layer_norm: layer_norm})
