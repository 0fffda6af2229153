"""No time without a right result: a provider's outputs and gradients against float64 torch, in this process.

An error may be twice PyTorch's own in that dtype plus a few ulp of the largest term. Nobody types a tolerance.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from benchmarks.operation import Case, Operation

SEED = 20261122
FACTOR = 2.0
FLOOR_ULP = 4


class Wrong(Exception):
    """A provider's result cannot be trusted; the message is what the row says."""


@dataclass
class Bound:
    """A provider's function with its own copy of the inputs, in one dtype, on one device."""

    function: Callable
    inputs: tuple[torch.Tensor, ...]
    mode: str
    leaves: list[torch.Tensor] = field(default_factory=list)  # whose gradients are asked for
    gaps: list[torch.Tensor] = field(default_factory=list)  # memory that keeps others apart

    def __call__(self):
        return self.function(*self.inputs)

    def move(self) -> None:
        """Everything elsewhere in memory, at other distances: which loads meet stores in the same place of a page, and
        which pages share a cache's sets, is luck that stays for as long as nothing moves."""
        modules = self.function.parameters() if isinstance(self.function, torch.nn.Module) else ()
        self.gaps.append(torch.empty(64 * random.randint(1, 64), dtype=torch.uint8))
        for tensor in (*self.inputs, *modules):
            tensor.data = tensor.data.clone()


def bind(function: Callable, inputs: tuple[torch.Tensor, ...], mode: str, device: str, dtype: torch.dtype) -> Bound:
    """Inputs are rounded to the case's dtype before this, so that float64 sees the numbers the kernel sees."""
    differentiable = mode != "forward"

    def own(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor.to(device)
        made = tensor.detach().to(device, dtype, copy=True)
        made = torch.nn.Parameter(made) if isinstance(tensor, torch.nn.Parameter) else made
        return made.requires_grad_(differentiable)

    bound = Bound(function, tuple(own(tensor) for tensor in inputs), mode)
    bound.leaves = [tensor for tensor in bound.inputs if tensor.requires_grad]
    if isinstance(function, torch.nn.Module):
        function.to(device, dtype).train(differentiable)
        bound.leaves += [p for p in function.parameters() if p.requires_grad] if differentiable else []
    return bound


def outputs_of(result) -> tuple[torch.Tensor, ...]:
    return tuple(tensor for tensor in result if tensor is not None) if isinstance(result, tuple) else (result,)


def cotangents(outputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The same gradients for every provider: drawn in float32 on the CPU, rounded to nothing finer than bfloat16. Each lies in
    memory as its output does, as it would come from an operation behind: what makes pixels of planes is not given planes."""
    generator = torch.Generator().manual_seed(SEED)
    draw = [torch.randn(out.shape, generator=generator).bfloat16() for out in outputs]
    return [torch.empty_like(out).copy_(value) for value, out in zip(draw, outputs, strict=True)]


@dataclass
class Result:
    """Outputs, then gradients where the mode has any, and the largest term that entered from outside."""

    tensors: list[torch.Tensor]
    largest_cotangent: float = 0.0


def second_derivatives(outputs, leaves, douts) -> tuple[torch.Tensor, ...]:
    """The gradients, then what a penalty on them adds: their own gradients, with cotangents of the same making."""
    gradients = torch.autograd.grad(outputs, leaves, douts, create_graph=True)
    curved = [gradient for gradient in gradients if gradient.requires_grad]
    if not curved:
        return gradients
    seconds = torch.autograd.grad(curved, leaves, cotangents(curved), allow_unused=True, materialize_grads=True)
    return *(gradient.detach() for gradient in gradients), *seconds


def evaluate(bound: Bound) -> Result:
    torch.manual_seed(SEED)
    with torch.set_grad_enabled(bound.mode != "forward"):
        outputs = outputs_of(bound())
        if bound.mode == "forward":
            return Result(list(outputs))
        douts = cotangents(outputs)
        if bound.mode == "double-backward":
            gradients = second_derivatives(outputs, bound.leaves, douts)
        else:
            gradients = torch.autograd.grad(outputs, bound.leaves, douts)
    largest = max(dout.abs().max().item() for dout in douts)
    return Result([*(out.detach() for out in outputs), *gradients], largest)


@contextlib.contextmanager
def comparable(function: Callable, mode: str) -> Iterator[bool]:
    """A module whose numbers can be compared: without dropout, its gradients without a jump; yields whether it had dropout.

    A pre-activation within rounding of zero takes ReLU's derivative from 0 to 1, and among millions some do, in torch
    as in ours: gradients through it measure luck. They are compared through GELU; ReLU itself has rows of its own.
    """
    dropouts, jumps = [], []
    if isinstance(function, torch.nn.Module):
        for module in function.modules():
            name = "dropout" if isinstance(module, torch.nn.MultiheadAttention) else "p"
            if isinstance(getattr(module, name, None), float) and getattr(module, name) > 0:
                dropouts.append((module, name, getattr(module, name), 0.0))
            if mode != "forward" and getattr(module, "activation", None) is F.relu:
                jumps.append((module, "activation", F.relu, F.gelu))
    for module, name, _, stand_in in dropouts + jumps:
        setattr(module, name, stand_in)
    try:
        yield bool(dropouts)
    finally:
        for module, name, value, _ in dropouts + jumps:
            setattr(module, name, value)


def expect_alive(bound: Bound) -> None:
    """A module's dropout follows the seed: two seeds, two results."""
    torch.manual_seed(1)
    first = outputs_of(bound())[0]
    torch.manual_seed(2)
    if torch.equal(first, outputs_of(bound())[0]):
        raise Wrong("dropout does nothing: two seeds give one result")


class Reference:
    """Float64 truth and PyTorch's own error for one (operation, case, mode); computed once, used for every provider."""

    def __init__(self, operation: Operation, case: Case, mode: str, device: str):
        self.operation, self.case, self.mode, self.device = operation, case, mode, device
        torch.manual_seed(SEED)
        self.dtype = getattr(torch, case.dtype)
        inputs = operation.inputs(case)
        self.inputs = tuple(t.to(self.dtype) if t.is_floating_point() else t for t in inputs)
        self._truth = None
        self.torch_errors = self.errors(self.bind(self.build(operation.torch)))

    def build(self, factory: Callable[[Case], Callable]) -> Callable:
        torch.manual_seed(SEED)  # modules: the same weights for every provider
        return factory(self.case)

    def bind(self, function: Callable, dtype: torch.dtype | None = None) -> Bound:
        return bind(function, self.inputs, self.mode, self.device, dtype or self.dtype)

    def evaluate(self, bound: Bound) -> Result:
        return evaluate(replace(bound, mode="forward") if self.operation.outputs_only else bound)

    def truth(self, bound: Bound) -> Result:
        if self.operation.truth is not None:  # depends on the random choices of that provider
            return evaluate(self.bind(self.operation.truth(self.case, bound), torch.float64))
        if self._truth is None:
            exact = self.bind(self.rounded(self.build(self.operation.torch)), torch.float64)
            with comparable(exact.function, self.mode):
                self._truth = self.evaluate(exact)
        return self._truth

    def rounded(self, function: Callable) -> Callable:
        """A module's weights pass through the case's dtype, as the inputs do."""
        return function.to(self.dtype) if isinstance(function, torch.nn.Module) else function

    def errors(self, bound: Bound) -> list[tuple[float, float]]:
        """Per output and gradient: the largest absolute error, and the largest term it is measured against."""
        with comparable(bound.function, self.mode) as random:
            results, truths = self.evaluate(bound), self.truth(bound)
        if random and self.mode != "forward":
            expect_alive(bound)
        if len(results.tensors) != len(truths.tensors):
            raise Wrong(f"{len(results.tensors)} results where torch has {len(truths.tensors)}")
        errors = []
        for result, truth in zip(results.tensors, truths.tensors, strict=True):
            if result.shape != truth.shape:
                raise Wrong(f"shape {tuple(result.shape)} where torch has {tuple(truth.shape)}")
            largest = max(truth.abs().max().item(), truths.largest_cotangent)
            if self.dtype == torch.float64 and truth.numel():  # the truth, too, is a sum in an order of its own
                products = self.operation.flops(self.case, "forward") / 2 / truth.numel()
                largest *= max(self.operation.terms(self.case), products) ** 0.5
            errors.append(((result.double() - truth).abs().max().item(), largest))
        return errors

    def check(self, bound: Bound) -> tuple[float, float]:
        """(error, allowed error) of the worst tensor. Raises Wrong when that is too much."""
        ulp = torch.finfo(self.dtype).eps
        worst = (0.0, FLOOR_ULP * ulp)
        for (error, largest), (torchs, _) in zip(self.errors(bound), self.torch_errors, strict=True):
            allowed = FACTOR * torchs + FLOOR_ULP * ulp * largest
            if not error <= allowed:  # also when it is NaN
                raise Wrong(f"max error {error:.2g}, allowed {allowed:.2g}")
            worst = max(worst, (error, allowed), key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)
        return worst
