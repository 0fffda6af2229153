"""Modulated convolution at the layers of a StyleGAN2 of 64 pixels, against the same in torch's operations and against
batch-as-groups: weights of their own for each sample, and one grouped convolution, as most code has it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import gcd, isqrt

import torch
import torch.nn.functional as F

from benchmarks.known import Gap, Story
from benchmarks.operation import PROVIDERS, Case, Operation, Provider, gpu_case
from pyflash.auto.conv import MODULATED


@dataclass(frozen=True)
class Shape:
    batch: int
    inputs: int
    outputs: int
    size: int  # of the input
    up: int = 1
    channels_last: bool = False
    kernel: int = 3
    is_layers: bool = False  # the weight is a layer's, whose packed form may be kept


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    s = case.shape
    x = torch.randn(s.batch, s.inputs, s.size, s.size)
    x = x.to(memory_format=torch.channels_last) if s.channels_last else x
    noise = torch.randn(s.batch, 1, s.size * s.up, s.size * s.up)
    weight = torch.randn(s.outputs, s.inputs, s.kernel, s.kernel)
    weight = torch.nn.Parameter(weight) if s.is_layers else weight
    return x, weight, torch.randn(s.batch, s.inputs) + 1, noise


def _filter(shape: Shape) -> torch.Tensor | None:
    import pyflash

    return pyflash.functional.setup_filter([1, 3, 3, 1]) if shape.up > 1 else None


def modulated(case: Case, backend: str | None = None):
    import pyflash

    up, f = case.shape.up, _filter(case.shape)

    def function(x, weight, styles, noise):
        f_here = None if f is None else f.to(x.device)
        with pyflash.use_backend(backend) if backend else nullcontext():
            return pyflash.functional.modulated_conv2d(
                x,
                weight,
                styles,
                noise,
                up=up,
                padding=case.shape.kernel // 2,
                resample_filter=f_here,
                flip_weight=up == 1,
            )

    return function


def batch_as_groups(case: Case):
    s, taps = case.shape, torch.tensor([1.0, 3.0, 3.0, 1.0])

    def function(x, weight, styles, noise):
        own = weight[None] * styles[:, None, :, None, None]  # [N, C_out, C_in, 3, 3]
        own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        x = x.reshape(1, -1, *x.shape[2:])
        if s.up == 1:
            y = F.conv2d(x, own.flatten(0, 1), padding=s.kernel // 2, groups=s.batch)
        else:
            own = own.transpose(1, 2).flatten(0, 1)
            y = F.conv_transpose2d(x, own, stride=2, groups=s.batch)  # a border of one more each side
            f = (taps[:, None] * taps / 16).to(y).expand(y.shape[1], 1, 4, 4)
            y = F.conv2d(F.pad(y, (1, 1, 1, 1)), f, groups=y.shape[1])
        return y.view(s.batch, s.outputs, *y.shape[2:]) + noise

    return function


def flops(case: Case, mode: str) -> float:
    s = case.shape
    forward = 2 * s.batch * s.inputs * s.outputs * s.kernel**2 * s.size**2
    return forward * {"forward": 1, "backward": 2, "training": 3}[mode]


def moved(case: Case, mode: str) -> float:
    s = case.shape
    x, y = s.batch * s.inputs * s.size**2, s.batch * s.outputs * (s.size * s.up) ** 2
    return case.itemsize * (x + y) * {"forward": 1, "backward": 2, "training": 3}[mode]


MODES = ("forward", "training")  # a backward of its own took a third of ten minutes, and is in training


def _both(name: str, shape: Shape, **rest):
    yield Case(name, shape, MODES, **rest)
    yield Case(f"{name} channels_last", replace(shape, channels_last=True), MODES, **rest)


CASES = (
    *_both("8x512x8 to 512", Shape(8, 512, 512, 8), model="StyleGAN2 of 64 pixels, its second size"),
    *_both("8x256x16 to 256", Shape(8, 256, 256, 16), model="StyleGAN2 of 64 pixels, its third size", quick=True),
    *_both("8x128x32 to 128", Shape(8, 128, 128, 32), model="StyleGAN2 of 64 pixels, its fourth size"),
    *_both("8x64x64 to 64", Shape(8, 64, 64, 64), model="StyleGAN2 of 64 pixels, its last"),
    *_both("8x128x32 to 64 up 2", Shape(8, 128, 64, 32, 2), model="StyleGAN2 of 64 pixels, into its last size"),
)  # fmt: skip

STORY = Story(
    limit="FLOPs of the convolution. In inference style, demodulation and noise are within it; with gradients they are a pass over"
    " the input and one over the result.",
    elsewhere="Batch-as-groups writes a weight for each sample and reads it as a grouped convolution: dear for many channels,"
    " cheap for few, where its weights are smaller than a pass over a picture.",
    gaps=(Gap("", "the convolution is what `auto` takes; see conv2d"),),
)

OPERATION = Operation(
    name="modulated_conv2d",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: modulated(case, "torch"),
    pyflash=modulated,
    flops=flops,
    bytes=moved,
    providers=(*PROVIDERS.values(), Provider("batch as groups", batch_as_groups)),
    gpu=(
        gpu_case(
            "32x256x16 to 256", Shape(32, 256, 256, 16), Shape(2, 6, 5, 4), "forward", "backward", dtype="float32"
        ),
        gpu_case(
            "32x128x32 to 64 up 2 channels_last",
            Shape(32, 128, 64, 32, 2, True),
            Shape(2, 6, 5, 4, 2, True),
            "forward",
            "backward",
            dtype="float32",
        ),
    ),
)


def _point(kind: str, sizes: tuple[int, ...]) -> tuple[Operation, Shape]:
    positions, inputs, outputs, kernel = sizes
    batch = gcd(8, positions)
    layout = {"channels_last": kind.endswith("channels_last")}
    return OPERATION, Shape(batch, inputs, outputs, isqrt(positions // batch), kernel=isqrt(kernel), **layout)


POINTS = {MODULATED: _point}
