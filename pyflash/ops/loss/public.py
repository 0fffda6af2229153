"""What the family offers in pyflash.functional."""

from pyflash.ops.loss.gan import gan_discriminator_loss, gan_generator_loss
from pyflash.ops.loss.penalties import gradient_penalty, r1_penalty

__all__ = ["gan_discriminator_loss", "gan_generator_loss", "gradient_penalty", "r1_penalty"]
