"""Linear, Linear with its activation fused, and Sequential(Linear, GELU) after pyflash.replace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.known import AMX, TINY, Gap, Story
from benchmarks.operation import Case, Operation, gpu_case


@dataclass(frozen=True)
class Shape:
    rows: int  # M
    inner: int  # K
    cols: int  # N
    kind: str = "linear"  # linear, linear_act, sequential


CASES = (
    Case("1024x512x2048", Shape(1024, 512, 2048), ("forward", "training", "double-backward"), quick=True,
         model="Transformer base, feed-forward"),
    Case("4096x256x1024", Shape(4096, 256, 1024), ("forward", "backward", "training"),
         model="the demo's feed-forward, 16 x 256 tokens"),
    Case("4096x1024x256", Shape(4096, 1024, 256), ("forward", "training"),
         model="the demo's feed-forward, back"),
    Case("4096x256x768", Shape(4096, 256, 768), ("forward", "training"),
         model="the demo's q, k, v projection"),
    Case("2048x768x3072", Shape(2048, 768, 3072), ("forward", "training"),
         model="BERT base, feed-forward, 4 x 512 tokens"),
    Case("1x768x3072", Shape(1, 768, 3072), ("forward",), model="GPT-2, one token"),
    Case("linear_act 1024x512x2048", Shape(1024, 512, 2048, "linear_act"), ("forward", "training"),
         quick=True, model="Transformer base, feed-forward with GELU"),
    Case("linear_act 64x512x2048", Shape(64, 512, 2048, "linear_act"), ("forward", "double-backward"),
         quick=True,
         model="Transformer base, 64 tokens"),
    Case("Sequential 1024x512x2048", Shape(1024, 512, 2048, "sequential"), ("forward", "training"),
         model="Sequential(Linear, GELU)"),
    Case("Sequential 64x512x2048", Shape(64, 512, 2048, "sequential"), ("forward",),
         model="Sequential(Linear, GELU)"),
    Case("1024x512x2048", Shape(1024, 512, 2048), ("forward",), dtype="bfloat16",
         model="oneDNN's own ground"),
    Case("tiny 8x16x16", Shape(8, 16, 16), ("forward",), quick=True),
)  # fmt: skip

SMALL = Shape(40, 64, 70)
ALL = "forward", "backward"
GPU = (
    gpu_case("8192x4096x4096", Shape(8192, 4096, 4096), SMALL, *ALL),
    gpu_case("8192x1024x4096", Shape(8192, 1024, 4096), SMALL, *ALL),
    gpu_case("16x4096x4096", Shape(16, 4096, 4096), SMALL, *ALL),
    gpu_case("1000x1000x1000", Shape(1000, 1000, 1000), Shape(17, 33, 19), *ALL),  # no multiple of a tile, nor of 16
    gpu_case("linear_act 8192x4096x4096", Shape(8192, 4096, 4096, "linear_act"), Shape(40, 64, 70, "linear_act"), *ALL),
    gpu_case("2048x2048x2048", Shape(2048, 2048, 2048), SMALL, *ALL, dtype="float32"),
    gpu_case("2048x2048x2048", Shape(2048, 2048, 2048), SMALL, *ALL, dtype="float16"),
)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape
    x = torch.randn(shape.rows, shape.inner)
    if shape.kind == "sequential":
        return (x,)
    return x, torch.randn(shape.cols, shape.inner) / shape.inner**0.5, torch.randn(shape.cols)


def sequential(case: Case) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(case.shape.inner, case.shape.cols), torch.nn.GELU())


def torchs(case: Case):
    return {
        "linear": lambda case: F.linear,
        "linear_act": lambda case: lambda x, weight, bias: F.gelu(F.linear(x, weight, bias)),
        "sequential": sequential,
    }[case.shape.kind](case)


def ours(case: Case):
    import pyflash
    import pyflash.functional as PF

    return {
        "linear": lambda case: PF.linear,
        "linear_act": lambda case: lambda x, weight, bias: PF.linear_act(x, weight, bias, activation="gelu"),
        "sequential": lambda case: pyflash.replace(sequential(case)),
    }[case.shape.kind](case)


def flops(case: Case, mode: str) -> float:
    products = {"forward": 1, "backward": 2, "training": 3}[mode]
    return products * 2 * case.shape.rows * case.shape.inner * case.shape.cols


def bytes_(case: Case, mode: str) -> float:
    """x, weight and y once, per product."""
    shape = case.shape
    once = shape.rows * shape.inner + shape.inner * shape.cols + shape.rows * shape.cols
    return {"forward": 1, "backward": 2, "training": 3}[mode] * once * case.itemsize


STORY = Story(
    limit="FLOPs: 2 M N K a product, two products backward; small batches are bound by reading the weight.",
    elsewhere="MKL and oneDNN: 75 to 90% of the peak they use. MKL stays on 256-bit vectors on AMD, so on Zen 5 half"
    " of the peak is out of its reach; on Zen 4, whose 512-bit units are half as wide, nothing is.",
    gaps=(
        TINY,
        Gap("1x", "one row is a matrix-vector product, bound by memory; torch's is nearer to it and `auto` takes it"),
        Gap(
            "",
            "the matrix units (AMX) compute bfloat16, and our kernels do not use them; `auto` takes torch's",
            dtype="bfloat16",
            families=AMX,
        ),
        Gap(
            "",
            "widening bfloat16 to float32 takes the time that the dot product would save; `auto` takes torch's",
            dtype="bfloat16",
        ),
        Gap("", "both are near the peak, and neither side's product is far from the other's", up_to=1.3),
    ),
)

OPERATION = Operation(
    name="linear", cases=CASES, inputs=inputs, torch=torchs, pyflash=ours, flops=flops, bytes=bytes_, gpu=GPU
)

POINTS = {name: lambda kind, sizes, name=name: (OPERATION, Shape(*sizes, name)) for name in ("linear", "linear_act")}
