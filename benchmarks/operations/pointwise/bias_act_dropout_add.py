"""The end of a Transformer's sublayer: bias, activation, dropout and residual in one pass.

Where it drops, the masks of two providers differ by design, so each is held to its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.check import SEED, Bound
from benchmarks.known import TORCHS, TWICE, ZEN_5, Gap, Story, fresh
from benchmarks.operation import Case, Operation, gpu_case, in_rows
from benchmarks.operations.pointwise.dropout import expect_share
from pyflash.activations import ACTIVATIONS


@dataclass(frozen=True)
class Shape:
    rows: int
    cols: int
    activation: str | None = "gelu"
    dropout: float = 0.0


BOTH = ("forward", "training")

CASES = (
    Case("bias gelu residual 4096x4096", Shape(4096, 4096), BOTH, model="a feed-forward of width 4096"),
    Case("bias gelu residual 4096x4096", Shape(4096, 4096), BOTH, dtype="bfloat16", model="the same"),
    Case("bias gelu residual 512x1024", Shape(512, 1024), (*BOTH, "double-backward"), quick=True, model="BERT large, in cache"),
    Case("bias dropout residual 4096x768", Shape(4096, 768, None, 0.1), BOTH, quick=True, model="GPT-2, 4 x 1024 tokens"),
)  # fmt: skip

GPU = (
    gpu_case("bias gelu residual 16384x4096", Shape(16384, 4096), Shape(9, 70), "forward", "backward"),
    gpu_case("bias dropout residual 16384x4096", Shape(16384, 4096, None, 0.1), Shape(9, 700, None, 0.1),
             "forward", "backward"),
)  # fmt: skip


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    rows, cols = case.shape.rows, case.shape.cols
    x, bias, residual = torch.randn(rows, cols), torch.randn(cols), torch.randn(rows, cols)
    if case.shape.dropout:  # so large that what is kept shows beside the residual
        return x + x.sign(), bias / 8, residual / 2
    return x, bias, residual


def of(case: Case, drop):
    activation = case.shape.activation and ACTIVATIONS[case.shape.activation].reference
    return lambda x, bias, residual: residual + drop(activation(x + bias) if activation else x + bias)


def truth(case: Case, bound: Bound):
    p = case.shape.dropout
    if not p:
        return torchs(case)
    x, bias, residual = bound.inputs
    torch.manual_seed(SEED)
    with torch.no_grad():
        kept = (bound() - residual).abs() > 0.5 * (x + bias).abs()  # what is dropped leaves the residual
    expect_share(kept, p)
    return of(case, lambda u: u * kept / (1 - p))


def torchs(case: Case):
    return of(case, lambda u: F.dropout(u, case.shape.dropout, True) if case.shape.dropout else u)


def ours(case: Case):
    from pyflash import functional

    shape = case.shape
    return lambda x, bias, residual: functional.bias_act_dropout_add(
        x, bias, residual, activation=shape.activation, dropout_p=shape.dropout
    )


def bytes_(case: Case, mode: str) -> float:
    backward = 3 if case.shape.activation else 2  # dy, x, dx
    tensors = {"forward": 3, "backward": backward, "training": 3 + backward}[mode]  # x, residual, y
    return tensors * case.shape.rows * case.shape.cols * case.itemsize


STORY = Story(
    limit="Memory: x, the residual and the result once, in the backward dy, x and dx.",
    elsewhere="torch makes a pass for each of the parts, and draws its mask one element after another; torch.compile fuses them.",
    gaps=(
        TWICE,
        Gap(
            "dropout residual",
            "measured while this fell to torch's dropout, which draws its mask on one thread",
            served="torch",
            families=ZEN_5,
        ),
        TORCHS,
        fresh("4096x4096", also="; and erf is a polynomial of about 60 vector instructions"),
    ),
)

OPERATION = Operation(
    name="bias_act_dropout_add",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    truth=truth,
    gpu=GPU,
)

POINTS = {"bias_act_dropout_add": lambda kind, sizes: (OPERATION, Shape(*in_rows(*sizes)))}
