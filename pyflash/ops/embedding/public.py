"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch.nn.functional as F

from pyflash.ops.core.public import stands_for
from pyflash.ops.embedding.bag import embedding_bag
from pyflash.ops.embedding.embedding import embedding
from pyflash.ops.embedding.positions import alibi_slopes, rotary_embedding

__all__ = ["alibi_slopes", "embedding", "embedding_bag", "rotary_embedding"]

stands_for({F.embedding: embedding, F.embedding_bag: embedding_bag})
