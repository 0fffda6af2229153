"""Self-attention between the places of a picture. Zhang et al. 2018, "Self-attention generative adversarial networks",
arXiv:1805.08318, section 3."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

import pyflash.nn
from pyflash.models.gan._functional import functional_of


class SelfAttention2d(torch.nn.Module):
    """x + gamma attention(x): each place looks at all, by queries and keys of an eighth of the channels and values of half.

    Args:
        channels: of x, a multiple of 8.
        nn: torch.nn for the twin.
    Shape:
        x [N, channels, H, W] to the same. gamma begins as 0, so that the block begins as nothing.
    """

    def __init__(self, channels: int, *, nn: ModuleType = pyflash.nn):
        super().__init__()
        if channels % 8:
            raise ValueError(f"SelfAttention2d: channels is {channels}, expected a multiple of 8")
        self.query = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.key = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.value = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.out = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = torch.nn.Parameter(torch.zeros(1))
        self.functional = functional_of(nn)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (of(x).flatten(2).mT[:, None] for of in (self.query, self.key, self.value))  # [N, 1 head, H W, each]
        found = self.functional.attention(q, k, v, scale=1.0)
        return x + self.gamma * self.out(found[:, 0].mT.unflatten(2, x.shape[2:]))
