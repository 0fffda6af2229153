"""What the operators are defined to be, place by place, in torch operations; and pictures for their tests."""

import torch
import torch.nn.functional as F


def upfirdn2d(x, f, up=1, down=1, padding=(0, 0, 0, 0), flip_filter=False, gain=1.0):
    """Zeros between the places, zeros around them or places taken away, a filter, every so many-th place. Differentiable;
    up and down are (across, down), padding is (left, right, top, bottom)."""
    f = f.to(x.dtype)
    f = torch.outer(f, f) if f.dim() == 1 else f
    f = f if flip_filter else f.flip([0, 1])
    (up_x, up_y), (down_x, down_y) = ((n, n) if isinstance(n, int) else n for n in (up, down))
    batch, channels, height, width = x.shape
    apart = x.new_zeros(batch, channels, height * up_y, width * up_x)
    apart[:, :, ::up_y, ::up_x] = x
    left, right, top, bottom = padding
    around = F.pad(apart, [max(n, 0) for n in padding])
    kept = around[
        :, :, max(-top, 0) : around.shape[2] - max(-bottom, 0), max(-left, 0) : around.shape[3] - max(-right, 0)
    ]
    windows = kept.unfold(2, f.shape[0], down_y).unfold(3, f.shape[1], down_x)
    return (windows * f).sum((-1, -2)) * gain


def filtered_lrelu(
    x, fu, fd, b=None, up=1, down=1, padding=(0, 0, 0, 0), gain=2**0.5, slope=0.2, clamp=None, flip_filter=False
):
    one = torch.ones(1)
    x = x if b is None else x + b[:, None, None]
    x = upfirdn2d(x, one if fu is None else fu, up, 1, padding, flip_filter, up**2)
    x = F.leaky_relu(x, slope) * gain
    x = x if clamp is None else x.clamp(-clamp, clamp)
    return upfirdn2d(x, one if fd is None else fd, 1, down, flip_filter=flip_filter)


def picture(shape, layout, dtype):
    x = torch.randn(shape).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "part":
        return torch.randn(*shape[:2], shape[2] + 2, shape[3] + 3).to(dtype)[:, :, 2:, :-3]
    return x
