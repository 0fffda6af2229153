"""Convolution: the numbers that a call is, and which of them a table is looked up with.

oneDNN and cuDNN are at 85 to 95% of what the arithmetic allows where many channels meet: until a table says that ours is
faster, torch keeps the call.
"""

from __future__ import annotations

from typing import NamedTuple

from pyflash.auto import MEASURED, tables

NOT_MEASURED = "not measured"

# On a CPU, from how many channels of a group, the smaller of both sides, the fewer products of F(2x2, 3x3) pay for its
# transforms. Zen 5, two threads, times as fast as the direct kernel at 64 to 256 channels: 1.4 to 1.7.
WINOGRAD_CHANNELS = 32

# Which kernels serve a shape, and in which memory format: a table has points of each.
SHAPES = ("pointwise", "dense", "strided", "depthwise", "grouped")
KINDS = tuple(shape + layout for shape in SHAPES for layout in ("", " channels_last"))


class Size(NamedTuple):
    """A convolution in numbers. Of a transposed one, those of the convolution that it is the input gradient of."""

    positions: int  # the batch times the places that the kernel is laid on
    inputs: int  # channels of a group
    outputs: int
    groups: int
    kernel: int  # its elements
    is_strided: bool
    channels_last: bool
    training: bool  # are gradients needed

    @property
    def macs(self) -> int:
        return self.positions * self.groups * self.inputs * self.outputs * self.kernel

    @property
    def kind(self) -> str:
        if self.groups > 1:
            shape = "depthwise" if self.inputs == 1 else "grouped"
        else:
            shape = "strided" if self.is_strided else "pointwise" if self.kernel == 1 else "dense"
        return f"{shape} channels_last" if self.channels_last else shape


# One table for all ranks: a row is an image of one row, to a kernel.
MEASURED_AS = {f"{name}{n}d": name for name in ("conv", "conv_transpose") for n in (1, 2, 3)} | {
    "conv_bias_act": "conv"
}
SIZES = f"({', '.join(Size._fields)})"


def rules(name: str):
    """Rules of a function by its name, for sizes as `Size`."""

    @tables.remembered
    def decide(where, size, dtype) -> str:
        channels = size.groups * size.inputs, size.groups * size.outputs
        mode = "training" if size.training else "inference"
        ours = tables.ours(where, MEASURED_AS[name], size.kind, dtype, mode, (size.positions, *channels, size.kernel))
        if ours is not None:
            return "" if ours else MEASURED
        return NOT_MEASURED

    return decide
