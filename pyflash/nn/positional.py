"""Positional encodings, added to the embeddings of a sequence. torch.nn has none."""

from __future__ import annotations

import torch
from torch import Tensor

import pyflash.functional as F

__all__ = ["PositionalEncoding"]


class PositionalEncoding(torch.nn.Module):
    """x + encoding of each position, then dropout.

    Args:
        d_model: features of an embedding.
        dropout: probability, applied to the sum. Default 0.
        max_len: longest sequence.
        learned: False: PE[pos, 2i] = sin(pos / 10000^(2i / d_model)), PE[pos, 2i + 1] the cosine (a buffer that is
            not saved); True: a parameter `weight` [max_len, d_model], drawn from N(0, 0.02^2).
        batch_first: as in torch.nn.Transformer: input (batch, seq, feature), otherwise (seq, batch, feature).
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """

    def __init__(
        self,
        d_model: int,
        dropout: float = 0.0,
        max_len: int = 5000,
        learned: bool = False,
        batch_first: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if d_model <= 0 or max_len <= 0:
            raise ValueError(f"d_model and max_len must be greater than 0, got d_model={d_model}, max_len={max_len}")
        if dropout < 0.0 or dropout > 1.0:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {dropout}")
        self.d_model, self.dropout, self.max_len = d_model, dropout, max_len
        self.learned, self.batch_first = learned, batch_first
        encoding = torch.empty(max_len, d_model, device=device, dtype=dtype)
        if learned:
            self.weight = torch.nn.Parameter(encoding)
        else:
            self.register_buffer("weight", encoding, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            if self.learned:
                self.weight.normal_(0.0, 0.02)
            else:
                self.weight.copy_(sinusoids(self.max_len, self.d_model, self.weight.device))

    def forward(self, input: Tensor, offset: int = 0) -> Tensor:
        """`input`: (seq, batch, feature), (batch, seq, feature) or unbatched; `offset`: position of its first row."""
        if input.dim() not in (2, 3) or input.shape[-1] != self.d_model:
            raise ValueError(
                f"pyflash.PositionalEncoding: input has shape {tuple(input.shape)}, expected 2 or 3 dimensions, the"
                f" last one {self.d_model}"
            )
        length = input.shape[1 if self.batch_first and input.dim() == 3 else 0]
        if offset < 0 or offset + length > self.max_len:
            raise ValueError(
                f"pyflash.PositionalEncoding: positions {offset} to {offset + length} are asked for, max_len is"
                f" {self.max_len}; construct it with a larger one"
            )
        encoding = self.weight[offset : offset + length]
        if input.dim() == 3 and not self.batch_first:
            encoding = encoding.unsqueeze(1)
        return F.dropout(input + encoding, self.dropout, self.training)

    def extra_repr(self) -> str:
        kind = "learned" if self.learned else "sinusoidal"
        return f"{self.d_model}, {kind}, max_len={self.max_len}, dropout={self.dropout}, batch_first={self.batch_first}"


def sinusoids(length: int, features: int, device=None) -> Tensor:
    """[length, features]: sines of every position in the even columns, cosines in the odd ones, in float64."""
    position = torch.arange(length, dtype=torch.float64, device=device).unsqueeze(1)
    pair = torch.arange(features, dtype=torch.float64, device=device) // 2
    angle = position / 10000.0 ** (2.0 * pair / features)
    return torch.where(torch.arange(features, device=device) % 2 == 0, angle.sin(), angle.cos())
