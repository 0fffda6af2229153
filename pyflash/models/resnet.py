"""ResNet. He, Zhang, Ren & Sun 2015, "Deep residual learning for image recognition", arXiv:1512.03385, table 1.

Names and initial weights are torchvision's: its checkpoints load, and a seed gives its weights. As there, a Bottleneck
halves the picture in its 3x3 convolution, not in the 1x1 before it ("ResNet v1.5").
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import init

import pyflash.nn


class BasicBlock(torch.nn.Module):
    """Two 3x3 convolutions and a way around them: figure 5, left."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, downsample: torch.nn.Module | None, nn: ModuleType):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + identity)


class Bottleneck(torch.nn.Module):
    """1x1 to a quarter of the channels, 3x3 there, 1x1 back, and a way around them: figure 5, right."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, downsample: torch.nn.Module | None, nn: ModuleType):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + identity)


class ResNet(torch.nn.Module):
    """A 7x7 convolution, four stages of blocks, the mean over the picture, a linear layer.

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks of each stage.
        num_classes: logits a picture.
        zero_init_residual: the last norm of each block begins with weight 0, so that the block begins as the way around
            it (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        width: of the first stage's 3x3 convolutions; each stage doubles it.
        nn: torch.nn for the twin.
    Shape:
        x [N, 3, H, W] to logits [N, num_classes]; a stage has H/4, H/8, H/16, H/32 rows, rounded up.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        width: int = 64,
        *,
        nn: ModuleType = pyflash.nn,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, width, width, depths[0], 1, nn)
        self.layer2 = _stage(block, width * block.expansion, 2 * width, depths[1], 2, nn)
        self.layer3 = _stage(block, 2 * width * block.expansion, 4 * width, depths[2], 2, nn)
        self.layer4 = _stage(block, 4 * width * block.expansion, 8 * width, depths[3], 2, nn)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width * block.expansion, num_classes)

        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock):
                init.zeros_(module.bn2.weight)
            elif zero_init_residual and isinstance(module, Bottleneck):
                init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        return self.fc(self.avgpool(x).flatten(1))


def _stage(block, in_channels: int, width: int, depth: int, stride: int, nn: ModuleType) -> torch.nn.Module:
    """Blocks of one size; where the first changes size or channels, so does a 1x1 convolution on the way around it."""
    channels, downsample = width * block.expansion, None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    first = block(in_channels, width, stride, downsample, nn)
    return nn.Sequential(first, *(block(channels, width, 1, None, nn) for _ in range(depth - 1)))


def resnet18(num_classes: int = 1000, zero_init_residual: bool = False, *, nn: ModuleType = pyflash.nn) -> ResNet:
    """18 layers of BasicBlocks; 11,689,512 parameters with 1000 classes. Arguments and shapes: ResNet."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, zero_init_residual, nn=nn)


def resnet34(num_classes: int = 1000, zero_init_residual: bool = False, *, nn: ModuleType = pyflash.nn) -> ResNet:
    """34 layers of BasicBlocks; 21,797,672 parameters with 1000 classes. Arguments and shapes: ResNet."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, zero_init_residual, nn=nn)


def resnet50(num_classes: int = 1000, zero_init_residual: bool = False, *, nn: ModuleType = pyflash.nn) -> ResNet:
    """50 layers of Bottlenecks; 25,557,032 parameters with 1000 classes. Arguments and shapes: ResNet."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, zero_init_residual, nn=nn)
