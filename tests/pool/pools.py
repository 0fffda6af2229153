"""What the tests of pooling share."""

import torch

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def laid_out(shape, layout, dtype):
    """Random numbers of a shape, some of them equal, that lie in memory as `layout` says."""
    x = torch.randn(shape).mul(8).round().div(8).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=FORMATS[len(shape)])
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "sliced":
        return torch.cat([x, x], 1).contiguous(memory_format=FORMATS[len(shape)])[:, : shape[1]]
    return x


def of_rank(module_or_functional, name, shape):
    """A function or class of as many dimensions as the shape has behind batch and channels."""
    return getattr(module_or_functional, name.format(len(shape) - 2))
