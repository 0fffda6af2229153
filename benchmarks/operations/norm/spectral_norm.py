"""A weight over its spectral norm, in training: a step of power iteration, the division, and the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.utils.parametrizations import _SpectralNorm

from benchmarks.known import TINY, TWICE, Story
from benchmarks.operation import Case, Operation, gpu_case

BOTH = ("forward", "training")


@dataclass(frozen=True)
class Shape:
    weight: tuple[int, ...]
    dim: int = 0

    @property
    def numel(self) -> int:
        return torch.Size(self.weight).numel()


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    return (torch.randn(case.shape.weight),)


def of(case: Case, call):
    """`call` with the same vectors for everybody, at every call; w's type and device are known then only."""
    rows = case.shape.weight[case.shape.dim]
    drawn = torch.Generator().manual_seed(0)
    vectors = [torch.randn(n, generator=drawn) for n in (rows, case.shape.numel // rows)]
    return lambda w: call(w, *(torch.nn.functional.normalize(t, dim=0).to(w) for t in vectors))


def torchs(case: Case):
    norm = _SpectralNorm(torch.empty([1] * len(case.shape.weight)), dim=case.shape.dim)

    def call(w, u, v):
        norm._u, norm._v = u, v
        return norm(w)

    return of(case, call)


def ours(case: Case):
    from pyflash import functional

    return of(case, lambda w, u, v: functional.spectral_norm(w, u, v, dim=case.shape.dim))


def bytes_(case: Case, mode: str) -> float:
    """Iterated: W; divided: W and the result; backward: dy and W, then dy and dW."""
    tensors = {"forward": 3, "backward": 4, "training": 7}[mode]
    return tensors * case.shape.numel * case.itemsize


CASES = (
    Case("256x128x4x4", Shape((256, 128, 4, 4)), BOTH, quick=True, model="SN-GAN's and DCGAN's discriminator"),
    Case("512x512x3x3", Shape((512, 512, 3, 3)), (*BOTH, "double-backward"), model="BigGAN's and SAGAN's residual blocks"),
    Case("512x256x4x4 transposed", Shape((512, 256, 4, 4), 1), BOTH, model="SAGAN's generator"),
    Case("1024x1024", Shape((1024, 1024)), BOTH, quick=True, model="a critic's linear layer"),
    Case("tiny 64x64", Shape((64, 64)), ("forward",), quick=True),
)  # fmt: skip

STORY = Story(
    limit="Memory: an iteration reads the weight once, the division reads and writes it; the backward reads dy twice and W once.",
    elsewhere="torch reads the weight three times for u, v and sigma, in twelve operations; its gradient has an outer product of W's size.",
    gaps=(TWICE, TINY),
)

OPERATION = Operation(
    name="spectral_norm",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,  # 4 a byte read at most
    bytes=bytes_,
    terms=lambda case: case.shape.numel,
    gpu=(
        gpu_case("512x512x3x3", Shape((512, 512, 3, 3)), Shape((6, 5, 3, 3)), "forward", "backward"),
        gpu_case("1024x512x4x4 transposed", Shape((1024, 512, 4, 4), 1), Shape((6, 5, 2, 2), 1), "forward", "backward"),
    ),
)  # fmt: skip

POINTS = {"spectral_norm": lambda kind, sizes: (OPERATION, Shape((32, sizes[0] // 32)))}
