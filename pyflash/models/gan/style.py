"""A style-based generator and its discriminator.

Karras et al. 2019, "A style-based generator architecture for generative adversarial networks", arXiv:1812.04948: mapping,
noise, truncation. Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", arXiv:1912.04958: modulated
weights, skip outputs in the generator, residual blocks in the discriminator. Labels: by the mapping, and by projection
(Miyato & Koyama 2018, arXiv:1802.05637). All weights are learned at one rate: they begin with deviation 1 and are scaled
where they are used (Karras et al. 2018, arXiv:1710.10196, section 4.1).
"""

from __future__ import annotations

from math import sqrt
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter

import pyflash.nn
from pyflash.models.gan._functional import Functional, functional_of
from pyflash.models.gan.dcgan import FIRST, MOST, check_labels, doublings

FILTER = (1, 3, 3, 1)  # of every resampling
CLAMP = 256.0  # of activations: half types stay finite


def _whole(f: Tensor | None) -> Tensor | None:
    """A filter is float32 whatever the model is cast to."""
    return None if f is None else f.float()


def _scaled(x: Tensor, weight: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """x and a weight whose product is `gain` times theirs: the one that is read and written in less time is scaled."""
    return (x * gain, weight) if x.numel() < weight.numel() else (x, weight * gain)


class EqualizedLinear(torch.nn.Module):
    """A linear layer and an activation of `bias_act`, its weight scaled where it is used."""

    def __init__(
        self, inputs: int, outputs: int, functional: Functional, act="linear", bias_init=0.0, rate: float = 1.0
    ):
        super().__init__()
        self.weight = Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = Parameter(torch.full((outputs,), float(bias_init)))
        self.weight_gain, self.bias_gain, self.act, self.functional = rate / sqrt(inputs), rate, act, functional

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.bias_gain == 1 else self.bias * self.bias_gain
        y = self.functional.linear(*_scaled(x, self.weight, self.weight_gain))
        return self.functional.bias_act(y, bias.to(y.dtype), act=self.act)


class EqualizedConv2d(torch.nn.Module):
    """A convolution, perhaps after the filter's downsampling, and an activation of `bias_act`."""

    resample_filter: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, kernel: int, functional: Functional, act="linear", bias=True, down: int = 1
    ):
        super().__init__()
        self.weight = Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = Parameter(torch.zeros(outputs)) if bias else None
        self.register_buffer("resample_filter", functional.setup_filter(FILTER) if down > 1 else None)
        self.weight_gain, self.act, self.functional = 1 / sqrt(inputs * kernel**2), act, functional
        self.down, self.padding = down, kernel // 2

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        F, (x, weight) = self.functional, _scaled(x, self.weight, self.weight_gain)
        x = F.conv2d_resample(x, weight.to(x.dtype), _whole(self.resample_filter), down=self.down, padding=self.padding)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        gain = gain * (sqrt(2) if self.act == "lrelu" else 1.0)
        return F.bias_act(x, bias, act=self.act, gain=gain, clamp=CLAMP * gain if self.act == "lrelu" else None)


class StyleLayer(torch.nn.Module):
    """A modulated convolution, noise, bias and leaky ReLU."""

    noise_const: Tensor
    resample_filter: Tensor | None

    def __init__(self, inputs: int, outputs: int, style_dim: int, size: int, functional: Functional, up: int = 1):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, inputs, functional, bias_init=1.0)
        self.weight = Parameter(torch.randn(outputs, inputs, 3, 3))
        self.register_buffer("noise_const", torch.randn(size, size))
        self.register_buffer("resample_filter", functional.setup_filter(FILTER) if up > 1 else None)
        self.noise_strength = Parameter(torch.zeros([]))
        self.bias = Parameter(torch.zeros(outputs))
        self.up, self.functional = up, functional

    def forward(self, x: Tensor, style: Tensor, noise: str) -> Tensor:
        F, added = self.functional, None
        if noise == "random":
            added = torch.randn(x.shape[0], 1, *self.noise_const.shape, device=x.device) * self.noise_strength
        elif noise == "const":
            added = self.noise_const * self.noise_strength
        return F.modulated_conv2d(
            x, self.weight, self.affine(style), added, up=self.up, padding=1, resample_filter=_whole(self.resample_filter),
            flip_weight=self.up == 1, b=self.bias.to(x.dtype), act="lrelu", clamp=CLAMP * sqrt(2),
        )  # fmt: skip


class ToPicture(torch.nn.Module):
    """A modulated 1x1 convolution to the picture's channels, not demodulated."""

    def __init__(self, inputs: int, channels: int, style_dim: int, functional: Functional):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, inputs, functional, bias_init=1.0)
        self.weight = Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = Parameter(torch.zeros(channels))
        self.weight_gain, self.functional = 1 / sqrt(inputs), functional

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        styles = self.affine(style) * self.weight_gain
        return self.functional.modulated_conv2d(
            x, self.weight, styles, demodulate=False, b=self.bias.to(x.dtype), clamp=CLAMP
        )


class StyleBlock(torch.nn.Module):
    """One size of picture: from half of it, or from a constant; what it adds to the picture."""

    resample_filter: Tensor

    def __init__(self, inputs: int, outputs: int, style_dim: int, size: int, channels: int, functional: Functional):
        super().__init__()
        self.functional = functional
        if inputs:
            self.register_buffer("resample_filter", functional.setup_filter(FILTER))
            self.conv0 = StyleLayer(inputs, outputs, style_dim, size, functional, up=2)
        else:
            self.const = Parameter(torch.randn(outputs, size, size))
        self.conv1 = StyleLayer(outputs, outputs, style_dim, size, functional)
        self.torgb = ToPicture(outputs, channels, style_dim, functional)

    def forward(self, x: Tensor | None, picture: Tensor | None, style: Tensor, noise: str):
        if x is None:
            x = self.const.expand(style.shape[0], -1, -1, -1)
        else:
            x = self.conv0(x, style, noise)
            picture = self.functional.upsample2d(picture, _whole(self.resample_filter))
        x = self.conv1(x, style, noise)
        added = self.torgb(x, style)
        return x, added if picture is None else picture + added


def _channels(width: int, image_size: int, size: int) -> int:
    return width * min(MOST, image_size // size)


class Mapping(torch.nn.Module):
    """z, a label, or both to a style; of z its mean is learned."""

    w_avg: Tensor  # None without z

    def __init__(self, latent_dim: int, num_classes: int, depth: int, functional: Functional, has_z: bool = True):
        super().__init__()
        self.num_classes, self.functional, self.depth = num_classes, functional, depth
        inputs = latent_dim * (has_z + bool(num_classes))
        if num_classes:
            self.embed = EqualizedLinear(num_classes, latent_dim, functional)
        for i in range(depth):
            layer = EqualizedLinear(inputs if i == 0 else latent_dim, latent_dim, functional, "lrelu", rate=0.01)
            setattr(self, f"fc{i}", layer)
        self.register_buffer("w_avg", torch.zeros(latent_dim) if has_z else None)

    def forward(self, z: Tensor | None, labels: Tensor | None) -> Tensor:
        given = [] if z is None else [z]
        if labels is not None:
            one_hot = torch.nn.functional.one_hot(labels, self.num_classes)
            given.append(self.embed(one_hot.to(self.embed.weight.dtype)))
        x = torch.cat([self.functional.pixel_norm(part) for part in given], dim=1)
        for i in range(self.depth):
            x = getattr(self, f"fc{i}")(x)
        if self.training and self.w_avg is not None:
            with torch.no_grad():
                self.w_avg.lerp_(x.mean(0).to(self.w_avg.dtype), 0.005)
        return x


class Synthesis(torch.nn.Module):
    """A style to a picture, from 4x4 on."""

    def __init__(self, image_size: int, channels: int, latent_dim: int, width: int, functional: Functional):
        super().__init__()
        self.sizes = [FIRST << i for i in range(doublings("StyleGenerator", image_size) + 1)]
        inputs = 0
        for size in self.sizes:
            outputs = _channels(width, image_size, size)
            setattr(self, f"b{size}", StyleBlock(inputs, outputs, latent_dim, size, channels, functional))
            inputs = outputs

    def forward(self, style: Tensor, noise: str) -> Tensor:
        first, *others = (getattr(self, f"b{size}") for size in self.sizes)
        x, picture = first(None, None, style, noise)
        for block in others:
            x, picture = block(x, picture, style, noise)
        return picture


class StyleGenerator(torch.nn.Module):
    """Pictures of random vectors: a mapping to a style, which scales the weights of every layer.

    Args:
        image_size: 8, 16, 32, 64, 128 or 256.
        channels: of a picture.
        latent_dim: elements of z, and of the style.
        width: channels at the full size; each half of it has twice as many, up to eight times.
        num_classes: of labels; 0 for none.
        mapping_depth: layers from z to the style.
        nn: torch.nn for the twin.
    Shape:
        z [N, latent_dim], labels [N] int64 or None, to pictures [N, channels, image_size, image_size], of any size of number.
    """

    def __init__(
        self,
        image_size: int = 64,
        channels: int = 3,
        latent_dim: int = 100,
        width: int = 64,
        num_classes: int = 0,
        mapping_depth: int = 8,
        *,
        nn: ModuleType = pyflash.nn,
    ):
        super().__init__()
        self.latent_dim, self.num_classes = latent_dim, num_classes
        functional = functional_of(nn)
        self.synthesis = Synthesis(image_size, channels, latent_dim, width, functional)
        self.mapping = Mapping(latent_dim, num_classes, mapping_depth, functional)

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, truncation: float = 1.0, noise: str = "random"
    ) -> Tensor:
        """truncation: how far from the mean style, 1 as it is (2019, section B); noise: "random", "const" or "none"."""
        check_labels("StyleGenerator", self.num_classes, labels)
        if noise not in ("random", "const", "none"):
            raise ValueError(f"StyleGenerator: noise is {noise!r}, expected 'random', 'const' or 'none'")
        style = self.mapping(z, labels)
        if truncation != 1:
            style = self.mapping.w_avg.lerp(style, truncation)
        return self.synthesis(style, noise)


class ResidualBlock(torch.nn.Module):
    """Two 3x3 convolutions to half the size, and a 1x1 convolution past them."""

    def __init__(self, inputs: int, outputs: int, functional: Functional):
        super().__init__()
        self.conv0 = EqualizedConv2d(inputs, inputs, 3, functional, "lrelu")
        self.conv1 = EqualizedConv2d(inputs, outputs, 3, functional, "lrelu", down=2)
        self.skip = EqualizedConv2d(inputs, outputs, 1, functional, bias=False, down=2)

    def forward(self, x: Tensor) -> Tensor:
        past = self.skip(x, gain=sqrt(0.5))
        return past + self.conv1(self.conv0(x), gain=sqrt(0.5))


class StyleDiscriminator(torch.nn.Module):
    """Is a picture real? Residual blocks, the deviation within a minibatch as one more channel, one logit each.

    Args:
        image_size, channels, width, num_classes: StyleGenerator's.
        latent_dim: of a label's vector.
        mapping_depth: layers from a label to it.
        nn: torch.nn for the twin.
    Shape:
        x [N, channels, image_size, image_size], labels [N] int64 or None, to logits [N].
    """

    def __init__(
        self,
        image_size: int = 64,
        channels: int = 3,
        latent_dim: int = 100,
        width: int = 64,
        num_classes: int = 0,
        mapping_depth: int = 8,
        *,
        nn: ModuleType = pyflash.nn,
    ):
        super().__init__()
        self.num_classes, self.functional = num_classes, functional_of(nn)
        F = self.functional
        sizes = [image_size >> i for i in range(doublings("StyleDiscriminator", image_size))]
        inputs = _channels(width, image_size, image_size)
        self.fromrgb = EqualizedConv2d(channels, inputs, 1, F, "lrelu")
        blocks = []
        for size in sizes:
            outputs = _channels(width, image_size, size // 2)
            blocks.append(ResidualBlock(inputs, outputs, F))
            inputs = outputs
        self.blocks = torch.nn.ModuleList(blocks)
        self.conv = EqualizedConv2d(inputs + 1, inputs, 3, F, "lrelu")
        self.fc = EqualizedLinear(inputs * FIRST**2, inputs, F, "lrelu")
        self.out = EqualizedLinear(inputs, latent_dim if num_classes else 1, F)
        self.mapping = Mapping(latent_dim, num_classes, mapping_depth, F, has_z=False) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels("StyleDiscriminator", self.num_classes, labels)
        x = self.fromrgb(x)
        for block in self.blocks:
            x = block(x)
        x = self.conv(self.functional.minibatch_stddev(x))
        x = self.out(self.fc(x.flatten(1)))
        if self.mapping is None:
            return x[:, 0]
        return (x * self.mapping(None, labels)).sum(1) / sqrt(x.shape[1])
