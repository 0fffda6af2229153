"""What the tests of norms share: the norms, and rows as they lie in memory."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

import pyflash.functional as PF

# A factor that takes squares past the type, and costs no digit.
LARGE = {torch.float32: 2.0**100, torch.bfloat16: 2.0**100, torch.float64: 2.0**900}


@dataclass(frozen=True)
class Norm:
    """A norm of torch.nn.functional with so many parameters, ours, and ours of a sum."""

    name: str
    parameters: int

    @property
    def torchs(self):
        return getattr(F, self.name)

    @property
    def ours(self):
        return getattr(PF, self.name)

    @property
    def ours_of_a_sum(self):
        return getattr(PF, f"add_{self.name}")

    def torchs_of_a_sum(self, x, residual, *args):
        return self.torchs(x + residual, *args), x + residual

    def weights(self, cols, dtype=torch.float32):
        return [torch.randn(cols, dtype=dtype) for _ in range(self.parameters)]


NORMS = [Norm("layer_norm", 2), Norm("rms_norm", 1)]


def laid_out(shape, layout, dtype):
    """Random numbers of a shape that lie in memory as `layout` says."""
    x = torch.randn(shape, dtype=dtype)
    if layout == "row_strided":
        return torch.randn(shape[0], 2 * shape[1], dtype=dtype)[:, : shape[1]]
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "swapped":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "expanded":
        return x[:1].expand(shape)
    return x


def in_order(x, layout):
    """The same numbers of [batch, channels, ...], lying in memory as `layout` says."""
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "channels_last":
        return x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])
    return x.contiguous()
