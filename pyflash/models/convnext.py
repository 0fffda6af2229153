"""ConvNeXt. Liu, Mao, Wu, Feichtenhofer, Darrell & Xie 2022, "A ConvNet for the 2020s", arXiv:2201.03545, table 9.

Names and initial weights are torchvision's: its checkpoints load, and a seed gives its weights.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import init

import pyflash.nn

EPS = 1e-6  # of every norm


class Permute(torch.nn.Module):
    """Another order of the dimensions, without a copy."""

    def __init__(self, *dims: int):
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.dims))


class Chain2d(torch.nn.ModuleList):
    """One module after another on N, C, H, W, where a LayerNorm is over C.

    torchvision has a subclass of LayerNorm for it. Here it stays torch.nn's own class, which pyflash.replace knows.
    """

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            if isinstance(module, torch.nn.LayerNorm):
                x = module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            else:
                x = module(x)
        return x


class StochasticDepth(torch.nn.Module):
    """In training, x [N, C, H, W] of a sample becomes 0 with probability p, else x / (1 - p). Huang et al. 2016, arXiv:1603.09382."""

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"pyflash.models.ConvNeXt: stochastic depth of probability {p}, expected 0 to 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.p)
        return x * (kept if self.p == 1 else kept / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class Block(torch.nn.Module):
    """Depthwise 7x7, LayerNorm, and an MLP of four times the channels, added to what came in: figure 4, right."""

    def __init__(self, channels: int, layer_scale: float, drop_probability: float, nn: ModuleType):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=EPS),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = torch.nn.Parameter(torch.full((channels, 1, 1), layer_scale))
        self.stochastic_depth = StochasticDepth(drop_probability)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stochastic_depth(self.layer_scale * self.block(x))


class ConvNeXt(torch.nn.Module):
    """A 4x4 convolution of stride 4, stages of blocks with a 2x2 convolution of stride 2 between them, the mean over the
    picture, a norm and a linear layer.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage.
        num_classes: logits a picture.
        stochastic_depth_prob: of the last block; it grows evenly from 0 at the first.
        layer_scale: what each block's weight of itself begins with.
        nn: torch.nn for the twin.
    Shape:
        x [N, 3, H, W], H and W at least 32, to logits [N, num_classes].
    Raises:
        ValueError: stochastic_depth_prob is no probability.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        num_classes: int = 1000,
        stochastic_depth_prob: float = 0.0,
        layer_scale: float = 1e-6,
        *,
        nn: ModuleType = pyflash.nn,
    ):
        super().__init__()
        parts = [Chain2d([nn.Conv2d(3, widths[0], 4, stride=4), nn.LayerNorm(widths[0], eps=EPS)])]
        before = 0  # blocks
        for stage, (depth, width) in enumerate(zip(depths, widths)):
            if stage > 0:
                narrow = widths[stage - 1]
                parts.append(Chain2d([nn.LayerNorm(narrow, eps=EPS), nn.Conv2d(narrow, width, 2, stride=2)]))
            at = [stochastic_depth_prob * i / (sum(depths) - 1.0) for i in range(before, before + depth)]
            parts.append(nn.Sequential(*(Block(width, layer_scale, p, nn) for p in at)))
            before += depth
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = Chain2d(
            [nn.LayerNorm(widths[-1], eps=EPS), nn.Flatten(1), nn.Linear(widths[-1], num_classes)]
        )
        for module in self.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:  # it has one; a type checker does not know
                    init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)))


def convnext_tiny(
    num_classes: int = 1000, stochastic_depth_prob: float = 0.1, *, nn: ModuleType = pyflash.nn
) -> ConvNeXt:
    """ConvNeXt-T; 28,589,128 parameters with 1000 classes. Arguments and shapes: ConvNeXt."""
    return ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768), num_classes, stochastic_depth_prob, nn=nn)
