"""torch.nn.functional's names and signatures, and the fused operations beside them."""

from pyflash.ops.activation import gelu, relu, sigmoid, silu, tanh

__all__ = ["gelu", "relu", "sigmoid", "silu", "tanh"]
