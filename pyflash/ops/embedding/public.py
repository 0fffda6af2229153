"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch.nn.functional as F

from pyflash.ops.core.public import stands_for
from pyflash.ops.embedding.embedding import embedding

__all__ = ["embedding"]

stands_for({F.embedding: embedding})
