"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch.nn.functional as F

from pyflash.ops.core.public import stands_for
from pyflash.ops.loss.cross_entropy import cross_entropy
from pyflash.ops.loss.gan import gan_discriminator_loss, gan_generator_loss
from pyflash.ops.loss.penalties import gradient_penalty, r1_penalty

__all__ = ["cross_entropy", "gan_discriminator_loss", "gan_generator_loss", "gradient_penalty", "r1_penalty"]

stands_for({F.cross_entropy: cross_entropy})
