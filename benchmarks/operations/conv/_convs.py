"""What the files of convolution share: shapes, their arguments, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import gcd, isqrt, prod
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from benchmarks.operation import Case, Operation
from pyflash.auto.conv import DEPTHWISE_1D, WITH_NORM, is_depthwise

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
INFERENCE, TRAINED = ("forward",), ("forward", "backward", "training")


@dataclass(frozen=True)
class Shape:
    """Input [N, C_in, *spatial], weight as the function takes it, and its other arguments."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    output_padding: int = 0
    is_transposed: bool = False
    has_bias: bool = True
    activation: str | None = None
    has_residual: bool = False
    has_norm: bool = False  # a batch norm in evaluation, in place of a bias
    channels_last: bool = False
    is_layers: bool = False  # the weight is a layer's, whose packed form may be kept

    @property
    def n(self) -> int:
        return len(self.weight) - 2

    @property
    def output(self) -> tuple[int, ...]:
        with torch.device("meta"):
            return tuple(torch_function(self)(torch.empty(self.input), torch.empty(self.weight), None).shape)

    @property
    def macs(self) -> int:
        """Of one product: the weight at every place that it is laid on."""
        places = self.input if self.is_transposed else self.output
        return places[0] * prod(places[2:]) * prod(self.weight)


def arguments(shape: Shape) -> dict:
    found = {"stride": shape.stride, "padding": shape.padding, "dilation": shape.dilation, "groups": shape.groups}
    return {**found, "output_padding": shape.output_padding} if shape.is_transposed else found


def torch_function(shape: Shape, functional=F):
    function = getattr(functional, f"conv{'_transpose' * shape.is_transposed}{shape.n}d")
    options = arguments(shape)
    return lambda x, weight, bias: function(x, weight, bias, **options)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    """x, weight, and the bias and residual that there are."""
    shape = case.shape
    outputs = shape.weight[1] * shape.groups if shape.is_transposed else shape.weight[0]
    images = [torch.randn(shape.input), torch.randn(shape.weight) / prod(shape.weight[1:]) ** 0.5]
    images += [torch.randn(shape.output)] * shape.has_residual
    if shape.channels_last:
        images = [t.contiguous(memory_format=FORMATS[t.dim()]) for t in images]
    x, weight, *residual = images
    weight = torch.nn.Parameter(weight) if shape.is_layers else weight
    if shape.has_norm:
        return x, weight, *torch.randn(3, outputs), torch.rand(outputs) + 0.5
    return x, weight, *([torch.randn(outputs)] * shape.has_bias), *residual


def _apart(shape: Shape, rest):
    """(bias, residual), either of them None."""
    bias, *rest = rest if shape.has_bias else (None, *rest)
    return bias, rest[0] if rest else None


def torchs(case: Case):
    shape, function = case.shape, torch_function(case.shape)
    if shape.has_norm:
        return lambda x, weight, gamma, beta, mean, var: F.relu(
            F.batch_norm(function(x, weight, None), mean, var, gamma, beta), inplace=True
        )

    def call(x, weight, *rest):
        bias, residual = _apart(shape, rest)
        y = function(x, weight, bias)
        y = y if residual is None else y + residual
        return getattr(F, shape.activation)(y) if shape.activation else y

    return call


def ours(case: Case):
    from pyflash import functional

    shape = case.shape
    if shape.has_norm:
        return normed(case)
    if not (shape.activation or shape.has_residual):
        function = torch_function(shape, functional)
        return lambda x, weight, *rest: function(x, weight, *(rest or (None,)))

    def call(x, weight, *rest):
        bias, residual = _apart(shape, rest)
        options = arguments(shape)
        return functional.conv_bias_act(
            x, weight, bias, **options, activation=shape.activation, residual=residual
        )  # fmt: skip

    return call


def normed(case: Case):
    """As a Sequential of Conv, BatchNorm and ReLU has it."""
    from pyflash.nn._chains import affine_of
    from pyflash.ops.conv.functions import conv_norm_act, is_norm_apart

    shape, unfused = case.shape, torchs(case)

    def call(x, weight, gamma, beta, mean, var):
        options, apart = arguments(shape), partial(unfused, x, weight, gamma, beta, mean, var)
        if is_norm_apart(x, weight, None, *options.values()):
            return apart()
        conv = SimpleNamespace(weight=weight, bias=None)
        norm = SimpleNamespace(running_mean=mean, running_var=var, weight=gamma, bias=beta, eps=1e-5)
        scale, bias = affine_of(conv, norm)
        return conv_norm_act(x, weight, bias, **options, scale=scale, activation="relu", unfused=apart)

    return call


PRODUCTS = {"forward": 1, "backward": 2, "training": 3}


def flops(case: Case, mode: str) -> float:
    return PRODUCTS[mode] * 2 * case.shape.macs


def bytes_(case: Case, mode: str) -> float:
    """Input, weight and output once, per product; the residual with the output, and again as its gradient."""
    shape = case.shape
    output = prod(shape.output) * (1 + shape.has_residual)
    return PRODUCTS[mode] * (prod(shape.input) + prod(shape.weight) + output) * case.itemsize


def operation(name: str, **declared) -> Operation:
    return Operation(name=name, inputs=inputs, torch=torchs, pyflash=ours, flops=flops, bytes=bytes_, **declared)


OPERATION = operation("conv", cases=())


def conv(batch: int, inputs: int, size, outputs: int, kernel: int, *, n: int = 2, groups: int = 1, padding=None, **options) -> Shape:  # fmt: skip
    """A square kernel on square images, which keep their size where the stride is 1."""
    padding = kernel // 2 if padding is None else padding
    sizes = (size,) * n if isinstance(size, int) else size
    weight = outputs, inputs // groups, *(kernel,) * n
    return Shape((batch, inputs, *sizes), weight, padding=padding, groups=groups, is_layers=True, **options)


def transposed(batch: int, inputs: int, size: int, outputs: int, kernel: int, *, n: int = 2, **options) -> Shape:
    weight = inputs, outputs // options.get("groups", 1), *(kernel,) * n
    return Shape((batch, inputs, *(size,) * n), weight, is_transposed=True, is_layers=True, **options)


def both_layouts(name: str, shape: Shape, modes, **settings) -> tuple[Case, Case]:
    """A case of NCHW, and the same in channels_last."""
    last = Case(f"{name} channels_last", replace(shape, channels_last=True), modes, **settings)
    return Case(name, shape, modes, **settings), last


# ---- the walk of `python -m benchmarks auto`, which knows a convolution by its numbers (pyflash/auto/conv.py)


def of_sizes(name: str, kind: str, positions: int, inputs: int, outputs: int, kernel: int) -> Shape:
    """A batch of images, or rows, or a volume, with about so many places, on which a square kernel is laid."""
    shape, _, layout = kind.partition(" ")
    side, batch = isqrt(kernel), gcd(8, positions)
    if shape == DEPTHWISE_1D:
        x_shape, weight_shape = (batch, inputs, positions // batch), (outputs, 1, kernel)
        return Shape(x_shape, weight_shape, padding=(kernel - 1) // 2, groups=inputs)
    if shape == "volume":
        width, side = round(positions ** (1 / 3)), round(kernel ** (1 / 3))
        x_shape, weight_shape = (1, inputs, *(width,) * 3), (outputs, inputs, *(side,) * 3)
        return Shape(x_shape, weight_shape, padding=side // 2, channels_last=bool(layout))
    width = max(1, isqrt(positions // batch))
    groups = inputs if is_depthwise(shape) else 1
    stride = 2 if shape in ("few", "phases", "patches") or shape.startswith("strided") else 1
    padding = 0 if shape == "patches" else (side - 1) // 2
    common = {"stride": stride, "padding": padding, "groups": groups, "channels_last": bool(layout)}
    if name == "conv_transpose":
        return Shape(
            (batch, outputs, width, width), (outputs, inputs // groups, side, side), is_transposed=True, **common
        )
    return Shape((batch, inputs, width * stride, width * stride), (outputs, inputs // groups, side, side), **common)


def points(name: str) -> dict:
    has_norm = name == WITH_NORM
    return {name: lambda kind, sizes: (OPERATION, replace(of_sizes(name, kind, *sizes), has_norm=has_norm))}
