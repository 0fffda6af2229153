"""What the family offers in pyflash.functional; its optimisers are in pyflash.optim."""

from pyflash.ops.optim.clip_grad_norm import clip_grad_norm_

__all__ = ["clip_grad_norm_"]
