"""The minibatch's deviation as one more channel, which shows a discriminator how alike its samples are. Karras et al. 2018,
arXiv:1710.10196, section 3; in groups, as StyleGAN2 has it (Karras et al. 2020, arXiv:1912.04958)."""

from __future__ import annotations

import torch

from pyflash.ops.core.checks import expect_tensors
from pyflash.ops.core.dtypes import acc_dtype


def minibatch_stddev(x: torch.Tensor, group_size: int | None = 4, num_channels: int = 1) -> torch.Tensor:
    """x with num_channels more channels: the standard deviations over the samples of a group, sqrt(var + 1e-8), averaged over
    the positions and a share of the channels.

    Args:
        x: [batch, channels, ...]; floating-point. A group is every (batch / group_size)-th sample. A channels_last x gives a
            channels_last result.
        group_size: samples in a group; None, or more than there are: all of the batch.
        num_channels: so many shares, each of channels / num_channels neighbours.
    Returns:
        [batch, channels + num_channels, ...], of x's type.
    Raises:
        ValueError: the batch is no multiple of group_size, or the channels of num_channels, or these are below 1.
        RuntimeError: no floating-point numbers.
    Numerics: deviations in float32 (float64 for float64), without Bessel's correction. In torch's operations: x is the smallest of a discriminator's feature maps.
    """
    expect_tensors("minibatch_stddev", x=x)
    if not x.is_floating_point():
        raise RuntimeError(f"pyflash.minibatch_stddev: x is {x.dtype}, expected a floating-point tensor")
    if x.dim() < 2:
        raise ValueError(f"pyflash.minibatch_stddev: x has shape {tuple(x.shape)}, expected [batch, channels, ...]")
    batch, channels, *positions = x.shape
    for name, value in (("group_size", 1 if group_size is None else group_size), ("num_channels", num_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"pyflash.minibatch_stddev: {name} is {value!r}, expected an int from 1 on")
    group = batch if group_size is None else min(group_size, batch)
    if group and batch % group:
        raise ValueError(
            f"pyflash.minibatch_stddev: a batch of {batch} is no multiple of group_size {group}; drop the last samples, or"
            " choose another"
        )
    if channels % num_channels:
        raise ValueError(
            f"pyflash.minibatch_stddev: {channels} channels are no multiple of num_channels {num_channels}"
        )
    if not batch:
        return torch.cat([x, x.new_empty(0, num_channels, *positions)], 1)
    parts = x.view(group, batch // group, num_channels, channels // num_channels, *positions).to(acc_dtype(x.dtype))
    variance = (parts - parts.mean(0)).square().mean(0)  # torch.var along the first dimension takes ten times as long
    of_group = (variance + 1e-8).sqrt().flatten(2).mean(2)  # [groups, num_channels]
    added = of_group.to(x.dtype).view(-1, num_channels, *(1,) * len(positions)).repeat(group, 1, *positions)
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == dims and not x.is_contiguous() and x.is_contiguous(memory_format=layout):
            return torch.cat([x, added.contiguous(memory_format=layout)], 1).contiguous(memory_format=layout)
    return torch.cat([x, added], 1)
