"""DCGAN, and the critic of WGAN-GP, which is its discriminator without norms.

Radford, Metz & Chintala 2015, "Unsupervised representation learning with deep convolutional generative adversarial
networks", arXiv:1511.06434, section 3. Gulrajani et al. 2017, "Improved training of Wasserstein GANs", arXiv:1704.00028,
section 4: a penalty on the gradient of each picture allows no norm over the batch. Names are those of PyTorch's DCGAN
example. By class: a label's vector beside z (Mirza & Osindero 2014, arXiv:1411.1784), and the discriminator's projection
(Miyato & Koyama 2018, arXiv:1802.05637).
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import init

import pyflash.nn

FIRST, LAST = 4, 256  # rows of the smallest picture within, and of the largest that is made
MOST = 8  # times `width`: channels where they are most


def doublings(name: str, image_size: int) -> int:
    """How often 4x4 becomes twice as large. ValueError for other sizes."""
    times = image_size.bit_length() - FIRST.bit_length()
    if times < 1 or FIRST << times != image_size or image_size > LAST:
        raise ValueError(f"{name}: image_size is {image_size}, expected a power of two from {2 * FIRST} to {LAST}")
    return times


def check_labels(name: str, num_classes: int, labels: Tensor | None) -> None:
    if (labels is None) == bool(num_classes):
        given, wanted = ("no labels", "labels [N]") if num_classes else ("labels", "none")
        raise ValueError(f"{name}: there are {given}, expected {wanted}: num_classes is {num_classes}")


def _begin(model: torch.nn.Module) -> None:
    """Section 3's weights: of deviation 0.02, a norm's around 1."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, torch.nn.BatchNorm2d):
            init.normal_(module.weight, 1.0, 0.02)
            init.zeros_(module.bias)


class DCGANGenerator(torch.nn.Module):
    """Pictures of random vectors: transposed convolutions from 4x4 on, each followed by batch norm and ReLU; tanh at the end.

    Args:
        image_size: 8, 16, 32, 64, 128 or 256.
        channels: of a picture.
        latent_dim: elements of z.
        width: channels before the last layer; each layer before it has twice as many, up to eight times.
        num_classes: of labels; 0 for none.
        nn: torch.nn for the twin.
    Shape:
        z [N, latent_dim], labels [N] int64 or None, to pictures [N, channels, image_size, image_size] within (-1, 1).
    """

    def __init__(
        self,
        image_size: int = 64,
        channels: int = 3,
        latent_dim: int = 100,
        width: int = 64,
        num_classes: int = 0,
        *,
        nn: ModuleType = pyflash.nn,
    ):
        super().__init__()
        times = doublings("DCGANGenerator", image_size)
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.embed = nn.Embedding(num_classes, latent_dim) if num_classes else None
        inputs = latent_dim * (2 if num_classes else 1)
        layers: list[torch.nn.Module] = []
        for i in range(times):
            outputs = width * min(MOST, 1 << (times - 1 - i))
            stride, padding = (2, 1) if i else (1, 0)
            layers += [
                nn.ConvTranspose2d(inputs, outputs, FIRST, stride, padding, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(True),
            ]
            inputs = outputs
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(inputs, channels, FIRST, 2, 1, bias=False), nn.Tanh())
        _begin(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels("DCGANGenerator", self.num_classes, labels)
        if self.embed is not None:
            z = torch.cat([z, self.embed(labels)], dim=1)
        return self.main(z[:, :, None, None])


class DCGANDiscriminator(torch.nn.Module):
    """Is a picture real? Convolutions of stride 2 down to 4x4, each but the first followed by batch norm, and leaky ReLUs;
    then one logit a picture.

    Args:
        image_size: 8, 16, 32, 64, 128 or 256.
        channels: of a picture.
        latent_dim: not used: the generator's, so that one set of arguments serves both.
        width: channels behind the first layer; each layer doubles them, up to eight times.
        num_classes: of labels; 0 for none.
        nn: torch.nn for the twin.
    Shape:
        x [N, channels, image_size, image_size], labels [N] int64 or None, to logits [N].
    """

    has_norms = True

    def __init__(
        self,
        image_size: int = 64,
        channels: int = 3,
        latent_dim: int = 100,
        width: int = 64,
        num_classes: int = 0,
        *,
        nn: ModuleType = pyflash.nn,
    ):
        super().__init__()
        times = doublings(type(self).__name__, image_size)
        self.num_classes = num_classes
        layers: list[torch.nn.Module] = []
        inputs = channels
        for i in range(times):
            outputs = width * min(MOST, 1 << i)
            is_normed = self.has_norms and i > 0  # section 3: not the first
            layers.append(nn.Conv2d(inputs, outputs, FIRST, 2, 1, bias=not self.has_norms))
            layers += [nn.BatchNorm2d(outputs)] if is_normed else []
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            inputs = outputs
        self.main = nn.Sequential(*layers, nn.Conv2d(inputs, 1, FIRST, 1, 0, bias=not self.has_norms))
        self.embed = nn.Embedding(num_classes, inputs) if num_classes else None
        _begin(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels(type(self).__name__, self.num_classes, labels)
        if self.embed is None:
            return self.main(x).flatten()
        features = self.main[:-1](x)
        likeness = (self.embed(labels) * features.sum((2, 3))).sum(1)
        return self.main[-1](features).flatten() + likeness


class WGANCritic(DCGANDiscriminator):
    """A number a picture, to be as far apart as can be for real ones and others; no norms, biases instead.

    Args and shape: DCGANDiscriminator.
    """

    has_norms = False
