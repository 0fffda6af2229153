"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch.nn.functional as F

from pyflash.ops.attention.decode import attention_decode
from pyflash.ops.attention.dense import attention, scaled_dot_product_attention
from pyflash.ops.attention.multi_head import multi_head_attention_forward
from pyflash.ops.attention.varlen import attention_varlen
from pyflash.ops.attention.weights import attention_weights
from pyflash.ops.core.public import stands_for

__all__ = [
    "attention",
    "attention_decode",
    "attention_varlen",
    "attention_weights",
    "multi_head_attention_forward",
    "scaled_dot_product_attention",
]

stands_for(
    {
        F.scaled_dot_product_attention: scaled_dot_product_attention,
        F.multi_head_attention_forward: multi_head_attention_forward,
    }
)
