"""Cross entropy of scores: a language model's tokens, a classifier's images, a segmentation's pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F

from benchmarks.known import TINY, TORCHS, Story
from benchmarks.operation import Case, Operation, gpu_case
from pyflash.auto.softmax import COLUMNS


@dataclass(frozen=True)
class Shape:
    scores: tuple[int, ...]  # [N, classes, ...]
    of: str = "classes"  # or probabilities
    label_smoothing: float = 0.0


BOTH = ("forward", "training")
SEGMENTATION = (4, 21, 256, 256)

CASES = (
    Case("4096x32000", Shape((4096, 32000)), BOTH, model="Llama 2, 4096 tokens"),
    Case("512x50257", Shape((512, 50257)), BOTH, model="GPT-2, 512 tokens"),
    Case("512x32000 bfloat16", Shape((512, 32000)), BOTH, dtype="bfloat16", quick=True, model="Llama 2, 512 tokens"),
    Case("256x1000 smoothing", Shape((256, 1000), label_smoothing=0.1), BOTH, quick=True, model="ImageNet, 256 images"),
    Case("256x1000 mixup", Shape((256, 1000), of="probabilities"), BOTH, model="ImageNet with mixed images"),
    Case("4x21x256x256", Shape(SEGMENTATION), BOTH, quick=True, model="segmentation, 21 classes"),
    Case("tiny 128x10", Shape((128, 10)), ("training",), quick=True, model="digits"),
)

GPU = tuple(
    gpu_case(f"{'x'.join(map(str, scores))}", Shape(scores, of), Shape(small, of), *BOTH, dtype=dtype)
    for scores, small, of, dtype in (
        ((4096, 32768), (3, 5000), "classes", "bfloat16"),
        ((4096, 32768), (3, 5000), "classes", "float32"),
        ((4096, 16384), (3, 5000), "probabilities", "bfloat16"),
        ((32, 21, 512, 512), (2, 21, 5, 9), "classes", "bfloat16"),
    )
)


def target_of(shape: Shape) -> torch.Tensor:
    """The same of every call: it is no input that is differentiated."""
    generator = torch.Generator(device="cpu").manual_seed(1)
    if shape.of == "probabilities":
        return torch.rand(shape.scores, generator=generator, device="cpu").softmax(1)
    n, classes, *rest = shape.scores
    return torch.randint(classes, (n, *rest), generator=generator, device="cpu")


def loss(functional):
    def of(case: Case):
        target = target_of(case.shape).to(torch.empty(0).device)
        if target.is_floating_point():
            target = target.to(getattr(torch, case.dtype))
        return lambda x: functional.cross_entropy(x, target, label_smoothing=case.shape.label_smoothing)

    return of


def ours(case: Case):
    from pyflash import functional

    return loss(functional)(case)


def bytes_(case: Case, mode: str) -> float:
    """The forward reads the scores, the backward reads them and writes their gradients; probabilities are read by both."""
    soft = case.shape.of == "probabilities"
    tensors = {"forward": 1 + soft, "backward": 2 + soft, "training": 3 + 2 * soft}[mode]
    return tensors * prod(case.shape.scores) * case.itemsize


def exps(case: Case, mode: str) -> float:
    return {"forward": 1, "backward": 1, "training": 2}[mode] * prod(case.shape.scores)


STORY = Story(
    limit="Memory: the scores once; the backward reads them and writes their gradients. In cache, an exponential an element.",
    elsewhere="torch stores the logarithm of the softmax, its gradient and the scores': three more tensors as large as these.",
    gaps=(TORCHS, TINY),
)

OPERATION = Operation(
    name="cross_entropy",
    cases=CASES,
    inputs=lambda case: (torch.randn(case.shape.scores),),
    torch=loss(F),
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    exps=exps,
    gpu=GPU,
)


def _point(kind, sizes):
    count, classes = sizes
    return OPERATION, Shape((1, classes, count) if kind == COLUMNS else (count, classes))


POINTS = {"cross_entropy": _point}
