"""LeNet-5. LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", section II.B."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

import pyflash.nn


class LeNet(torch.nn.Module):
    """Two convolutions of 5x5, each with a pooling that halves the picture, and three linear layers.

    As it is built today: ReLU and max pooling, where the paper has a scaled tanh and a pooling with weights, and every
    channel of the second convolution reads all of the first. 61,706 parameters as it stands, for 28x28 in grey.

    The first convolution keeps the size of the picture (padding 2, as the paper has its 28x28 digits on 32x32). The
    second takes its border away, unless nothing would be left to pool: below 12x12 it keeps the size as well.

    Args:
        num_classes: logits a picture.
        in_channels: of a picture; 1 is grey.
        image_size: height and width of a picture, at least 4.
        nn: torch.nn for the twin.
    Shape:
        x [N, in_channels, image_size, image_size] to logits [N, num_classes].
    Raises:
        ValueError: image_size is below 4.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28, *, nn: ModuleType = pyflash.nn
    ):
        super().__init__()
        if image_size < 4:
            raise ValueError(
                f"pyflash.models.LeNet: image_size is {image_size}, expected at least 4: two poolings halve it; pad the pictures"
            )
        padding = 0 if image_size >= 12 else 2
        size = (image_size // 2 + 2 * padding - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * size * size, 120), nn.ReLU(),
            nn.Linear(120, 84), nn.ReLU(),
            nn.Linear(84, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
