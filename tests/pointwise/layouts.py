"""How the tensors of these tests lie in memory."""

import torch


def laid_out(shape, layout, dtype=torch.float32):
    """Random numbers of a shape that lie in memory as `layout` says."""
    x = (torch.randn(shape) * 2).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "strided":
        return (torch.randn(*shape[:-1], 2 * shape[-1]) * 2).to(dtype)[..., ::2]
    if layout == "part of a row":
        return (torch.randn(*shape[:-1], 2 * shape[-1]) * 2).to(dtype)[..., : shape[-1]]
    if layout == "expanded":
        return x[:1].expand(shape)
    return x
