"""What the files of optimisers share: a call is one step of the parameters of a network with gradients that stay as they are.

Parameters move from call to call, so a call that is compared is not the first one: the truth takes as many steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch

from benchmarks.known import Story
from benchmarks.operation import Case, Operation, Provider, gpu_case


@dataclass(frozen=True)
class Shape:
    sizes: tuple[tuple[int, ...], ...]
    max_grad_norm: float | None = None

    @property
    def numel(self) -> int:
        return sum(map(prod, self.sizes))


def resnet18() -> tuple[tuple[int, ...], ...]:
    """He et al. 2016, torchvision's parameters."""
    sizes, before = [(64, 3, 7, 7), (64,), (64,)], 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            sizes += [(width, before, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            if block == 0 and width > 64:
                sizes += [(width, before, 1, 1), (width,), (width,)]
            before = width
    return (*sizes, (1000, 512), (1000,))


def gpt(width: int, depth: int, vocabulary: int, context: int = 1024) -> tuple[tuple[int, ...], ...]:
    """Radford et al. 2019."""
    block = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)]
    block += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return ((vocabulary, width), (context, width), *block * depth, (width,), (width,))


HUNDRED = ((100, 100),) * 100


class Steps:
    """A function of parameters and then their gradients: a step, and the parameters after it."""

    def __init__(self, make: Callable, clip: Callable | None = None):
        self.make, self.clip, self.taken = make, clip, 0
        self.optimizer = None

    def __call__(self, *tensors):
        params = tensors[: len(tensors) // 2]
        if self.optimizer is None:
            self.optimizer = self.make(params)
            for p, grad in zip(params, tensors[len(params) :]):
                p.grad = grad
        if self.clip is not None:
            self.clip(params)
        self.optimizer.step()
        self.taken += 1
        return tuple(p.detach() for p in params)


def _torchs(name: str, options: dict, case: Case, **more) -> Steps:
    limit = case.shape.max_grad_norm
    clip = None if limit is None else lambda params: torch.nn.utils.clip_grad_norm_(params, limit)
    return Steps(partial(getattr(torch.optim, name), **options, **more), clip)


def _ours(name: str, options: dict, case: Case) -> Steps:
    import pyflash.optim

    return Steps(partial(getattr(pyflash.optim, name), max_grad_norm=case.shape.max_grad_norm, **options))


def _truth(name: str, options: dict, case: Case, bound) -> Callable:
    steps = _torchs(name, options, case)

    def as_many(*tensors):
        while steps.taken < bound.function.taken:
            found = steps(*tensors)
        return found

    return as_many


def declared(name: str, optimizer: str, options: dict, tensors: int) -> Operation:
    """The operation of a file.

    tensors: how many a step reads and writes of a parameter's size.
    """

    has_fused = "fused" in inspect.signature(getattr(torch.optim, optimizer)).parameters

    def case(label, sizes, **more):
        limit = more.pop("max_grad_norm", None)
        return Case(label, Shape(sizes, limit), ("forward",), **more)

    return Operation(
        name=name,
        cases=(
            case("100x10k", HUNDRED, quick=True, model="as many small tensors"),
            case("100x10k clipped", HUNDRED, max_grad_norm=1.0, model="as many small tensors"),
            case("100x10k bfloat16", HUNDRED, dtype="bfloat16", model="as many small tensors"),
            case("ResNet-18", resnet18(), model="11.7M in 62 tensors"),
            case("GPT 6x512", gpt(512, 6, 8192), model="23.6M in 76 tensors"),
            case("GPT 6x512 clipped", gpt(512, 6, 8192), max_grad_norm=1.0, model="23.6M in 76 tensors"),
            case("50M", ((50_000_000,),), full=True, model="one tensor"),
        ),
        inputs=lambda case: tuple(torch.randn(size) for _ in range(2) for size in case.shape.sizes),
        torch=partial(_torchs, optimizer, options),
        pyflash=partial(_ours, optimizer, options),
        flops=lambda case, mode: 0.0,
        bytes=lambda case, mode: (tensors + (case.shape.max_grad_norm is not None)) * case.shape.numel * case.itemsize,
        truth=partial(_truth, optimizer, options),
        providers=(
            Provider("torch", "torch"),
            *(Provider("torch:fused", partial(_torchs, optimizer, options, fused=True)) for _ in range(has_fused)),
            Provider("pyflash", "pyflash"),
            Provider("pyflash:cpu", "pyflash", "cpu", devices=("cpu",)),
            Provider("pyflash:triton", "pyflash", "triton", devices=("cuda",)),
        ),
        gpu=tuple(
            gpu_case("GPT-2", Shape(gpt(768, 12, 50257), limit), Shape(gpt(8, 1, 30, 4), limit), "forward", dtype=dtype)
            for dtype, limit in (("bfloat16", None), ("float32", 1.0))
        ),
    )  # fmt: skip


STORY = Story(
    limit="Memory: of each parameter what its step reads and writes, once; of clipping, the gradients once more.",
    elsewhere="torch's default calls several operations for each parameter; its fused=True is one kernel a group.",
)
