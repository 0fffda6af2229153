"""Generative adversarial networks on pyflash.nn, and their training. Every model takes `nn=torch.nn` for its twin."""

from pyflash.models.gan.attention import SelfAttention2d
from pyflash.models.gan.dcgan import DCGANDiscriminator, DCGANGenerator, WGANCritic
from pyflash.models.gan.style import StyleDiscriminator, StyleGenerator
from pyflash.models.gan.training import Trained, train

__all__ = [
    "DCGANDiscriminator",
    "DCGANGenerator",
    "SelfAttention2d",
    "StyleDiscriminator",
    "StyleGenerator",
    "Trained",
    "WGANCritic",
    "train",
]
