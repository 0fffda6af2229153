"""StyleGAN's bias_act: bias, activation, gain and clamp in one pass, over images in both layouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.known import HOST, TORCHS, TWICE, Story, fresh, turned
from benchmarks.operation import Case, Operation, gpu_case, in_rows

CLAMP = 256.0  # StyleGAN2-ADA's, of its half-precision layers


@dataclass(frozen=True)
class Shape:
    sizes: tuple[int, ...]
    act: str = "lrelu"
    channels_last: bool = False

    @property
    def numel(self) -> int:
        return torch.Size(self.sizes).numel()


BOTH = ("forward", "training")

CASES = (
    Case("4x512x32x32", Shape((4, 512, 32, 32)), (*BOTH, "double-backward"), quick=True, model="StyleGAN2, at 32 pixels"),
    Case("4x256x128x128", Shape((4, 256, 128, 128)), BOTH, model="StyleGAN2, at 128 pixels"),
    Case("4x64x256x256 channels last", Shape((4, 64, 256, 256), channels_last=True), BOTH, model="StyleGAN2, at 256 pixels"),
    Case("4x256x128x128", Shape((4, 256, 128, 128)), BOTH, dtype="bfloat16", model="StyleGAN2, at 128 pixels"),
    Case("linear 4x3x256x256", Shape((4, 3, 256, 256), "linear"), BOTH, quick=True, model="StyleGAN2's images"),
    Case("swish 64x4096", Shape((64, 4096), "swish"), (*BOTH, "double-backward"), model="a fully connected layer"),
)  # fmt: skip

GPU = (
    gpu_case("8x256x128x128", Shape((8, 256, 128, 128)), Shape((2, 5, 7, 9)), "forward", "backward"),
    gpu_case("8x64x256x256 channels last", Shape((8, 64, 256, 256), "swish", True), Shape((2, 5, 7, 9), "swish", True),
             "forward", "backward"),
    gpu_case("8x256x128x128", Shape((8, 256, 128, 128)), Shape((2, 5, 7, 9)), "forward", "backward", dtype="float32"),
)  # fmt: skip


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    x = torch.randn(case.shape.sizes)
    if case.shape.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.randn(case.shape.sizes[1])


ACTS = {
    "linear": lambda x: x,
    "lrelu": lambda x: F.leaky_relu(x, 0.2) * 2**0.5,
    "swish": lambda x: F.silu(x) * 2**0.5,
}


def torchs(case: Case):
    act, shape = ACTS[case.shape.act], (-1, *(1,) * (len(case.shape.sizes) - 2))
    return lambda x, b: act(x + b.view(shape)).clamp(-CLAMP, CLAMP)


def ours(case: Case):
    from pyflash import functional

    return lambda x, b: functional.bias_act(x, b, act=case.shape.act, clamp=CLAMP)


def bytes_(case: Case, mode: str) -> float:
    tensors = {"forward": 2, "backward": 3, "training": 5}[mode]  # x, y; dy, x, dx
    return tensors * case.shape.numel * case.itemsize


STORY = Story(
    limit="Memory: one read and one write an element, and in the backward two reads and one write.",
    elsewhere="torch makes four passes; torch.compile fuses them; StyleGAN's own kernel is CUDA's.",
    gaps=(
        TWICE,
        TORCHS,
        *turned("channels last"),
        fresh("4x256x128x128"),
        fresh("4x64x256x256"),
        HOST,
    ),
)

OPERATION = Operation(
    name="bias_act",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    exps=lambda case, mode: (
        {"forward": 1, "backward": 1, "training": 2}[mode] * case.shape.numel * (case.shape.act == "swish")
    ),
    gpu=GPU,
)

POINTS = {"bias_act": lambda kind, sizes: (OPERATION, Shape(in_rows(*sizes)))}
