"""What the files of StyleGAN's resampling share: their filters, on the device that asks."""

from __future__ import annotations

from functools import cache

import torch

from pyflash.functional import setup_filter


@cache
def on_device(taps: int, device: torch.device) -> torch.Tensor:
    """StyleGAN2's filter of four taps; of more a separable one that falls to its ends, as StyleGAN3's."""
    if taps == 4:
        return setup_filter([1, 3, 3, 1], device=device)
    return setup_filter(torch.hann_window(taps + 2, periodic=False)[1:-1], device=device)


def laid_out(sizes, channels_last: bool) -> torch.Tensor:
    x = torch.randn(sizes)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


PASSES = {"forward": 1, "backward": 1, "training": 2}
