"""What the files of norms over channels share: images whose channels are normalised, in either order in memory, with a
residual and an activation behind the norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.operation import Case, Operation

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass(frozen=True)
class Shape:
    images: tuple[int, int, int, int]
    layout: str = "NCHW"
    groups: int = 0  # 0: batch norm, one for each channel: instance norm
    activation: str | None = None
    residual: bool = False
    uses_input: bool = True

    @classmethod
    def of_sizes(cls, elements: int, channels: int, **settings) -> Shape:
        """So many elements of a channel, in a batch of 8 where they are enough."""
        batch = math.gcd(8, elements)
        return cls((batch, channels, elements // batch, 1), **settings)

    @property
    def numel(self) -> int:
        return math.prod(self.images)

    @property
    def name(self) -> str:
        ending = f" {self.activation}" * bool(self.activation) + " residual" * self.residual
        return "x".join(map(str, self.images)) + f" {self.layout}{ending}" + " eval" * (not self.uses_input)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    """x, weight, bias and, where it is added, the residual."""
    shape = case.shape
    images = [
        torch.randn(shape.images).contiguous(memory_format=LAYOUTS[shape.layout]) for _ in range(1 + shape.residual)
    ]
    channels = shape.images[1]
    return images[0], torch.randn(channels), torch.randn(channels), *images[1:]


def bytes_(case: Case, mode: str) -> float:
    """x once and y; in the backward dy, x and dx, where a residual is dz as well."""
    shape = case.shape
    with_residual = 1 if shape.residual else 0
    forward, backward = 2 + with_residual, 3 + (2 * with_residual if shape.activation else 0)
    tensors = {"forward": forward, "backward": backward, "training": forward + backward}[mode]
    return tensors * shape.numel * case.itemsize


def terms(case: Case) -> int:
    """Of a weight's gradient the elements of a channel, of a mean those of what shares one."""
    shape = case.shape
    batch, channels = shape.images[:2]
    return max(shape.numel // channels, shape.numel // (batch * shape.groups or channels))


def _tracked(case: Case):
    """x -> running statistics of its type, the same at every call: they are changed in place, and no inputs."""
    kept = {}

    def of(x):
        key = x.dtype, x.device
        if key not in kept:
            channels = case.shape.images[1]
            kept[key] = x.new_zeros(channels), x.new_ones(channels)
        return kept[key]

    return of


def torchs(case: Case):
    shape, tracked = case.shape, _tracked(case)
    ending = getattr(F, shape.activation) if shape.activation else lambda x: x
    if shape.activation == "relu":  # as users write it behind a norm, and torch's gradient of it is the result's
        ending = partial(F.relu, inplace=True)

    def function(x, weight, bias, residual=None):
        if shape.groups == 0:
            y = F.batch_norm(x, *tracked(x), weight, bias, shape.uses_input)
        elif shape.groups == shape.images[1]:
            y = F.instance_norm(x, weight=weight, bias=bias)
        else:
            y = F.group_norm(x, shape.groups, weight, bias)
        return ending(y if residual is None else y + residual)

    return function


def ours(case: Case):
    from pyflash import functional

    shape, tracked = case.shape, _tracked(case)
    is_alone = not shape.activation and not shape.residual

    def function(x, weight, bias, residual=None):
        options = {} if is_alone else dict(activation=shape.activation, residual=residual)
        if shape.groups == 0:
            norm = functional.batch_norm if is_alone else functional.batch_norm_act
            return norm(x, *tracked(x), weight, bias, shape.uses_input, **options)
        if shape.groups == shape.images[1]:
            y = functional.instance_norm(x, weight=weight, bias=bias)
            return y if is_alone else getattr(functional, shape.activation)(y)
        norm = functional.group_norm if is_alone else functional.group_norm_act
        return norm(x, shape.groups, weight, bias, **options)

    return function


def operation(name: str, **declared) -> Operation:
    return Operation(
        name=name, inputs=inputs, torch=torchs, pyflash=ours, flops=lambda case, mode: 0.0, bytes=bytes_, terms=terms, **declared
    )  # fmt: skip


def case(shape: Shape, *modes: str, **settings) -> Case:
    return Case(shape.name, shape, modes, **settings)


def points(operation: Operation, groups=None, activations=(None, "relu")) -> dict:
    """Of the walk of `python -m benchmarks auto`. groups: None for one to a channel, 0 for those of a batch norm."""

    def point(kind, sizes, activation):
        of = sizes[1] if groups is None else groups
        return operation, Shape.of_sizes(*sizes, groups=of, activation=activation)

    return {f"{operation.name}{'_act' * bool(a)}": partial(point, activation=a) for a in activations}
