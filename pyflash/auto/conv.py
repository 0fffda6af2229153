"""Convolution: the numbers that a call is, and which of them a table is looked up with.

oneDNN and cuDNN are at 85 to 95% of what the arithmetic allows where many channels meet: until a table says that ours is
faster, torch keeps the call.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from pyflash.auto import MEASURED, tables

NOT_MEASURED = "not measured"

# On a CPU, from how many channels of a group, the smaller of both sides, the fewer products of F(2x2, 3x3) pay for its
# transforms. Zen 5, two threads, 256 channels of 14x14: 535 and 720 GFLOP/s of a direct convolution (NCHW, channels_last),
# where the direct kernel reached 350 and 400 in another run.
WINOGRAD_CHANNELS = 32
# And from how many places on, by whether channels are adjacent in what is written: of fewer its weights, 16 ninths as large,
# are all that counts, and they come from memory in a model. Zen 5, two threads, weights in turn, torch's time over that of
# Winograd's and of the direct kernel: 512 channels of 7x7 0.9 and 1.1 (adjacent), 0.55 and 1.2; four of them 1.1 and 0.9,
# 0.7 and 1.0; eight 1.2 and 0.9, 1.3 and 0.95.
LEAST_2X2_PLACES = {True: 128, False: 320}

# And in the weight's gradient, whose sums are over the places. Zen 4, one thread, the direct kernel's time over that of this one, channels
# first and last: 512 channels of 7x7, one image 0.67 and 0.7, 256 of 14x14 1.04 and 1.3, 64 of 8x8, four images 1.5 and 1.7, eight of
# 56x56 1.6 and 2.2.
LEAST_GRAD_PLACES = 128

# Likewise of F(2x2, 2x2), by which the phases of a 4x4 kernel of stride 2 are computed in the gradient of the input, that is of a
# transposed convolution: from how many places of a phase on, by whether the weight is kept as it is read, 9 fourths as large.
# Zen 4, one thread, the direct kernel's time over that of this one: kept, 512 channels of 4x4 to 256, one image 0.6, two 1.1,
# eight 1.4; not kept, 256 of 8x8 to 128, two images 0.66, 512 of 16x16 to 512, two 1.0, 256 of 8x8 to 128, sixteen 1.3.
LEAST_PHASE_PLACES = {True: 128, False: 512}

# Up to how many channels an input's gradient, or a transposed convolution, is computed as planes where it lies as pixels: as
# columns they fill no vector. Zen 4, one thread, 4 images, 64 channels of 33x33, 4x4, stride 2, the time as pixels over that as
# planes, copies included: to 1 channel 4.6, to 3 1.9, to 8 1.2, to 12 0.85; in bfloat16 5.1, 1.8, 1.2 and 0.97.
FEW_WRITTEN = 8

# Where the user has lowered the precision of float32 products: from how many places on, by whether channels are adjacent,
# F(4x4, 3x3) is faster than F(2x2, 3x3); of fewer its patches hang over the edges, or fill no panel. Zen 5, one thread: 14x14
# 1.0 and 0.83, 8 times 7x7 1.4 and 0.93, 56x56 1.3 and 1.1 times as fast, the latter channels first.
LEAST_4X4_PLACES = {True: 192, False: 1024}

# Which kernels serve a shape, and in which memory format: a table has points of each.
SHAPES = (
    "pointwise",
    "narrow",
    "3x3",
    "dense",
    "volume",
    "strided",
    "patches",
    "phases",
    "depthwise",
    "strided_depthwise",
    "few",
)
# Pointwise, of fewer channels on one side than a panel has: of each element more is read and written. MobileNetV2's 24 to 144 and
# back, 56x56, Zen 4, two threads, torch's time over ours: channels first 1.5 and 1.6, channels last 0.86 and 0.9, where of 64 to
# 256 it is 1.25 and 0.91.
LEAST_NARROW, MOST_NARROW = 16, 31
FEW_CHANNELS = 4  # in: an image's colours, whose lines a kernel of its own reads (csrc/cpu/conv/lines.h)
DEPTHWISE_1D = "depthwise1d"  # torch's is several times slower than its images'
KINDS = (*(shape + layout for shape in SHAPES for layout in ("", " channels_last")), DEPTHWISE_1D)


class Size(NamedTuple):
    """A convolution in numbers. Of a transposed one, those of the convolution that it is the input gradient of."""

    positions: int  # the batch times the places that the kernel is laid on
    inputs: int  # channels of a group
    outputs: int
    groups: int
    kernel: int  # its elements
    is_strided: bool
    is_3x3: bool  # of two dimensions, stride and dilation 1
    channels_last: bool
    training: bool  # are gradients needed
    is_1d: bool = False
    keeps_weight: bool = False  # as a kernel reads it: a layer's, and gradients are off
    has_2x2_phases: bool = False  # its input's gradient: a 4x4 kernel of stride 2
    has_norm: bool = False  # behind it: a batch norm in evaluation, and perhaps an activation
    is_3d: bool = False
    is_of_patches: bool = False  # the stride is the kernel: no element of the input is read twice

    @property
    def macs(self) -> int:
        return self.positions * self.groups * self.inputs * self.outputs * self.kernel

    @property
    def is_narrow(self) -> bool:
        low, high = sorted((self.inputs, self.outputs))
        return LEAST_NARROW <= low <= MOST_NARROW and high > MOST_NARROW

    @property
    def kind(self) -> str:
        if self.groups > 1:
            if self.is_1d and not self.channels_last:
                return DEPTHWISE_1D
            shape = "strided_depthwise" if self.is_strided else "depthwise"
        elif self.inputs <= FEW_CHANNELS:
            shape = "few"
        else:
            if self.is_strided:
                shape = "phases" if self.has_2x2_phases else "patches" if self.is_of_patches else "strided"
            elif self.kernel == 1:
                shape = "narrow" if self.is_narrow else "pointwise"
            else:
                shape = "volume" if self.is_3d else "3x3" if self.is_3x3 else "dense"
        return f"{shape} channels_last" if self.channels_last else shape


# A convolution with its modulation and what follows: torch's passes before and behind are in its time. Where its own points
# are silent, those of the convolution alone decide.
MODULATED = "modulated_conv"
# One table for all ranks but depthwise rows: a row is an image of one row, to a kernel.
MEASURED_AS = {f"{name}{n}d": name for name in ("conv", "conv_transpose") for n in (1, 2, 3)} | {
    "conv_bias_act": "conv",
    "modulated_conv2d": MODULATED,
}
KEPT = "kept"  # the mode of inference in which a packed weight outlives the call
WITH_NORM = "conv_norm"  # torch's two or three passes over the result are in its time
SIZES = f"({', '.join(Size._fields)})"
# Of fewer places a layer's weights are most of what inference reads, and in a model they come from memory, which the points
# of a table, one layer again and again, do not show. ResNet-50 of one image on two Zen 5 cores, times torch: channels first 0.93
# by the table alone, 1.03 with these; channels last 0.93 and 0.97; the latter in ResNet-18 0.92 and 0.97.
LEAST_PLACES = {"pointwise": 4096}
LEAST_PLACES_ELSE = 256
# Beyond these the points of a table, which have 64 channels and more and kernels of 9 where they are strided, say nothing.
LEAST_CHANNELS = 32  # of a group, in and out
# 3x3, stride 2, 64 channels of 28x28 to 32 and back, Zen 4, two threads: 0.8 to 0.97 of torch, where the points win.
LEAST_STRIDED_CHANNELS = 64
LEAST_STRIDED_KERNEL = 9
# 3x3x3, 32 channels of 32x32x32 to 64, Zen 4, two threads: 0.8 to 0.87 of torch, where of 64 ours is twice as fast.
LEAST_VOLUME_CHANNELS = 64


def is_3x3(kernel, stride, dilation) -> bool:
    return (*kernel, *stride, *dilation) == (3, 3, 1, 1, 1, 1)


def has_2x2_phases(kernel, stride, dilation) -> bool:
    """Are the phases of its input gradient, a transposed convolution, dense 2x2 convolutions?"""
    return (*kernel, *stride, *dilation) == (4, 4, 2, 2, 1, 1)


def is_of_patches(kernel, stride, dilation) -> bool:
    return max(stride) > 1 and (*kernel,) == (*stride,) and max(dilation) == 1


def is_like_points(size: Size) -> bool:
    if size.groups > 1:
        return size.inputs == size.outputs == 1 and not (size.is_strided and size.kind == DEPTHWISE_1D)
    if size.inputs <= FEW_CHANNELS:
        # ConvNeXt's first, 4x4, stride 4, as pixels, Zen 4, two threads, training: 0.66 of torch.
        return size.outputs >= LEAST_CHANNELS and not size.is_of_patches
    if size.is_strided and not size.is_of_patches:
        if size.is_1d:  # HiFi-GAN's way up, 16 and stride 8, Zen 4, two threads: 0.74
            return False
        return size.kernel >= LEAST_STRIDED_KERNEL and min(size.inputs, size.outputs) >= LEAST_STRIDED_CHANNELS
    if size.kernel == 1 and size.is_narrow:
        return True
    least = LEAST_VOLUME_CHANNELS if size.is_3d and size.kernel > 1 else LEAST_CHANNELS
    return min(size.inputs, size.outputs) >= least


def is_beyond_points(size: Size) -> bool:
    """Is no point of a table like this, whatever lies next to what?"""
    return not any([is_like_points(size._replace(channels_last=last)) for last in (False, True)])


def is_depthwise(kind: str) -> bool:
    return "depthwise" in kind


def is_packed(name: str, kind: str) -> bool:
    """Has a weight of this kind another form than its own in a kernel, on a CPU?"""
    if is_depthwise(kind) or kind.startswith("few"):
        return False
    return name == "conv_transpose" or kind.startswith("3x3") or kind.endswith("channels_last")


def is_bound_by_weights(kind: str, positions: int) -> bool:
    return not is_depthwise(kind) and positions < LEAST_PLACES.get(kind, LEAST_PLACES_ELSE)


def rules(name: str):
    """Rules of a function by its name, for sizes as `Size`."""

    @tables.remembered
    def decide(where, size, dtype) -> str:
        if not is_like_points(size):
            return NOT_MEASURED
        if not size.training and is_bound_by_weights(size.kind, size.positions):
            return MEASURED
        channels = size.groups * size.inputs, size.groups * size.outputs
        measured = WITH_NORM if size.has_norm else MEASURED_AS[name]
        looked_up = (measured, "conv") if measured == MODULATED else (measured,)
        modes = ("training",) if size.training else (KEPT, "inference") if size.keeps_weight else ("inference",)
        for measured, mode in product(looked_up, modes):
            ours = tables.ours(where, measured, size.kind, dtype, mode, (size.positions, *channels, size.kernel))
            if ours is not None:
                return "" if ours else MEASURED
        return NOT_MEASURED

    return decide
