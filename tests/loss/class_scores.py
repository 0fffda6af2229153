"""Scores of classes as they lie in memory, and targets, for losses whose targets are classes."""

import torch


def laid_out(x, layout):
    if layout == "row_strided":
        return torch.cat([x, x], 1)[:, : x.shape[1]]
    if layout == "transposed":
        return x.t().contiguous().t()
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def targets_of(x):
    """Classes, of which every third counts for nothing."""
    targets = torch.randint(x.shape[1], (x.shape[0], *x.shape[2:]))
    targets.view(-1)[2::3] = -100
    return targets
