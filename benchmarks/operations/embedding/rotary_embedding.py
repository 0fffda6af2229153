"""Rotary position embedding of queries and keys, as Llama has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.known import TINY, TORCHS, Story, fresh
from benchmarks.operation import Case, Operation, gpu_case


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    kv_heads: int
    length: int
    dim: int = 128


CASES = (
    Case("B1 H32 N2048 D128", Shape(1, 32, 32, 2048), ("forward", "backward", "training"), quick=True,
         model="Llama 2 7B, 2048 tokens"),
    Case("B1 H32/8 N2048 D128", Shape(1, 32, 8, 2048), ("forward", "training"), model="Llama 3 8B, 2048 tokens"),
    Case("B8 H32 N1 D128", Shape(8, 32, 32, 1), ("forward",), model="Llama 2 7B, one token of 8 sequences"),
    Case("tiny B1 H2 N4 D16", Shape(1, 2, 2, 4, 16), ("forward",), quick=True),
)  # fmt: skip

GPU = (
    gpu_case("B4 H32 N4096 D128", Shape(4, 32, 32, 4096), Shape(1, 2, 1, 20, 32), "forward", "backward"),
    gpu_case("B4 H32 N4096 D128", Shape(4, 32, 32, 4096), Shape(1, 2, 1, 20, 32), "forward", dtype="float32"),
)

STORY = Story(
    limit="Memory: queries and keys are read once and written once.",
    elsewhere="in torch it is four products, two sums and a concatenation, each a pass over queries or keys.",
    gaps=(
        TINY,
        TORCHS,
        fresh("H32"),
    ),
)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    """Queries and keys as views of projections."""
    shape = case.shape
    q, k = (
        torch.randn(shape.batch, shape.length, heads * shape.dim)
        .view(shape.batch, shape.length, heads, shape.dim)
        .transpose(1, 2)
        for heads in (shape.heads, shape.kv_heads)
    )
    return q, k


def tables(case: Case, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of both halves, in x's type, as transformers makes them once for all layers."""
    shape = case.shape
    frequency = 10000.0 ** (-torch.arange(0, shape.dim, 2, device=x.device, dtype=torch.float64) / shape.dim)
    angle = torch.arange(shape.length, device=x.device, dtype=torch.float64)[:, None] * frequency
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def kept(function, case: Case):
    """function(q, k, cos, sin) of tables that are made with the first call of a type."""
    made = {}

    def call(q, k):
        if q.dtype not in made:
            made[q.dtype] = tables(case, q)
        return function(q, k, *made[q.dtype])

    return call


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def torchs(case: Case):
    """transformers' apply_rotary_pos_emb."""
    return kept(
        lambda q, k, cos, sin: (q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin),
        case,
    )


def ours(case: Case):
    from pyflash.functional import rotary_embedding

    return kept(rotary_embedding, case)


def bytes_(case: Case, mode: str) -> float:
    shape = case.shape
    elements = shape.batch * (shape.heads + shape.kv_heads) * shape.length * shape.dim
    return {"forward": 2, "backward": 2, "training": 4}[mode] * elements * case.itemsize


OPERATION = Operation(
    name="rotary_embedding",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    gpu=GPU,
)
